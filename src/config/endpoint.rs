//! The endpoint of an S3 store: `https://host[:port]`, and for the few stores that want one a path.
//!
//! What has no scheme is refused and not completed: without one nobody would know whether TLS was meant, and nothing would be checked.

use super::{ConfigError, invalid};

/// Refuses an endpoint that is no address of a store, or that holds the bucket of `url`, which the client puts there itself.
pub(super) fn check(endpoint: &str, url: &str) -> Result<(), ConfigError> {
    let shape = "write it as https://host or https://host:port";
    let Some((scheme, rest)) = endpoint.split_once("://") else {
        let what = format!("the endpoint {endpoint:?} has no scheme, so it is not known whether TLS is meant");
        return invalid(what, &format!("write endpoint = \"https://{endpoint}\" (http:// only within this host)"));
    };
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return invalid(format!("the endpoint {endpoint:?} has the scheme {scheme:?}"), shape);
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let port = authority.rsplit_once(':').filter(|_| !authority.ends_with(']')).map(|(_, port)| port);
    if host(authority).is_empty() || port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return invalid(format!("the endpoint {endpoint:?} names no host, or a port that is no number"), shape);
    }
    if endpoint.contains(['?', '#']) || endpoint.contains(char::is_whitespace) {
        return invalid(format!("the endpoint {endpoint:?} holds a '?', a '#' or a space"), shape);
    }
    let bucket = url.strip_prefix("s3://").and_then(|rest| rest.split('/').next()).filter(|bucket| !bucket.is_empty());
    let Some(bucket) = bucket else { return Ok(()) };
    if path.split('/').any(|part| part == bucket) {
        let fix = format!("write endpoint = \"{scheme}://{authority}\"; bucket and prefix stand in url");
        return invalid(format!("the endpoint {endpoint:?} holds the bucket {bucket:?}"), &fix);
    }
    if let Some(store) = authority.strip_prefix(bucket).and_then(|rest| rest.strip_prefix('.')) {
        let fix = format!("write endpoint = \"{scheme}://{store}\"; the bucket's name is put before it unless path_style = true");
        return invalid(format!("the endpoint {endpoint:?} begins with the bucket {bucket:?}"), &fix);
    }
    Ok(())
}

/// The host of an endpoint on the network that is reached without TLS.
pub(super) fn plain_host(endpoint: &str) -> Option<&str> {
    let (scheme, rest) = endpoint.split_once("://")?;
    let name = host(rest.split(['/', '?', '#']).next().unwrap_or_default());
    (scheme.eq_ignore_ascii_case("http") && !is_loopback(name)).then_some(name)
}

/// The name or address in `[user@]host[:port]`.
fn host(authority: &str) -> &str {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // An IPv6 address stands in brackets, because it holds colons itself.
    let name = host.strip_prefix('[').and_then(|host| host.split(']').next());
    name.unwrap_or_else(|| host.split(':').next().unwrap_or_default())
}

/// Whether a host name or address can only mean this host.
pub fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address_with_a_scheme_and_without_the_bucket() {
        for good in [
            "https://s3.example.net",
            "https://s3.example.net/",
            "http://127.0.0.1:3900",
            "http://[::1]:3900",
            "HTTPS://minio.example.net:9000",
            "https://project.example.net/storage/v1/s3",
            "https://backups-of-all.example.net",
        ] {
            assert!(check(good, "s3://backups/shop").is_ok(), "{good}");
        }
        for (wrong, words) in [
            ("s3.example.net", "write endpoint = \"https://s3.example.net\""),
            ("minio:9000", "has no scheme"),
            ("//minio:9000", "has no scheme"),
            ("s3://minio:9000", "the scheme \"s3\""),
            ("https://", "names no host"),
            ("https://:9000", "names no host"),
            ("https://minio:port", "names no host"),
            ("https://minio:9000?x", "a port that is no number"),
            ("https://minio/a?x", "holds a '?'"),
            ("https://minio/backups", "write endpoint = \"https://minio\""),
            ("https://minio/backups/shop", "holds the bucket"),
            ("https://backups.s3.example.net", "write endpoint = \"https://s3.example.net\""),
        ] {
            let said = check(wrong, "s3://backups/shop").unwrap_err().to_string();
            assert!(said.contains(words), "{wrong}: {said}");
        }
    }
}
