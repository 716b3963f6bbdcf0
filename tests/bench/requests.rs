//! Requests in a stream of HTTP/1.1, told apart by what S3 would bill.

/// A head that is longer than this is none.
const HEAD_BYTES: usize = 64 << 10;

/// Looks at one direction of one connection.
#[derive(Debug, Default)]
pub struct Requests {
    head: Vec<u8>,
    body_bytes: u64,
    /// Where the next request begins is not known any more.
    lost: bool,
}

impl Requests {
    /// Sees the next bytes, and names each request that begins in them.
    pub fn see(&mut self, mut bytes: &[u8], mut count: impl FnMut(&str)) {
        while !bytes.is_empty() && !self.lost {
            if self.body_bytes > 0 {
                let passed = (bytes.len() as u64).min(self.body_bytes);
                self.body_bytes -= passed;
                bytes = &bytes[passed as usize..];
                continue;
            }
            let (first, rest) = bytes.split_at(1);
            self.head.extend(first);
            bytes = rest;
            if self.head.ends_with(b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&std::mem::take(&mut self.head)).to_ascii_lowercase();
                count(kind(&head));
                let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                self.body_bytes = field("content-length:").and_then(|text| text.parse().ok()).unwrap_or(0);
                // Nobody here sends chunks, because S3 wants the length first.
                self.lost = field("transfer-encoding:").is_some();
            }
            self.lost |= self.head.len() > HEAD_BYTES;
        }
    }
}

/// Of a request's head in lower case.
fn kind(head: &str) -> &'static str {
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let of_bucket = path.trim_matches('/').split('/').count() < 2;
    match method {
        "get" if of_bucket || query.contains("list-type") => "LIST",
        "get" => "GET",
        "head" => "HEAD",
        "put" => "PUT",
        "delete" => "DELETE",
        "post" if query.contains("delete") => "DELETE",
        _ => "POST",
    }
}
