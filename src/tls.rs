//! TLS to servers: the system's authorities and one of our own; certificates are always verified.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// A client's configuration. `ca_file` is a PEM file with the authorities to trust besides the system's.
pub fn client(ca_file: Option<&Path>) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let failed = |error: String| format!("{}: {error}", path.display());
        for certificate in CertificateDer::pem_file_iter(path).map_err(|e| format!("read {}", failed(e.to_string())))? {
            let certificate = certificate.map_err(|e| format!("read {}", failed(e.to_string())))?;
            roots.add(certificate).map_err(|e| failed(e.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(builder.map_err(|e| e.to_string())?.with_root_certificates(roots).with_no_client_auth())
}
