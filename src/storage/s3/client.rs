//! The SDK's client from our settings.
//!
//! # Credentials
//! A `credentials_file` or `profile` that is named in the configuration is the only source. Without either, the SDK's chain
//! decides: environment, profile, web identity, container, IMDSv2. What expires is fetched again before it does.
//!
//! # Certificates
//! The SDK panics on a bad PEM file, so it is checked here first.

use std::path::Path;
use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, Region};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    RequestChecksumCalculation, ResponseChecksumValidation, SharedCredentialsProvider, SharedHttpClient,
    StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector, proxy::ProxyConfig};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::clock::StoreClock;
use crate::config::S3;
use crate::storage::{Fault, StorageError};

/// A connection that takes longer to be made is tried again rather than waited for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A transfer in which no byte moves for so long is broken off.
const STALL_GRACE: Duration = Duration::from_secs(20);
/// Stores with an endpoint of their own mostly ignore the region, but it is part of the signature.
const REGION_WITH_ENDPOINT: &str = "us-east-1";

pub async fn build(settings: &S3, place: &str, clock: StoreClock) -> Result<aws_sdk_s3::Client, StorageError> {
    let wrong = |fault: Fault, detail: String| StorageError {
        operation: "open",
        place: place.into(),
        key: "repository".into(),
        fault,
        detail,
    };
    let http = http_client(settings.ca_file.as_deref()).map_err(|detail| wrong(Fault::Other, detail))?;
    let files = profile_files(settings).map_err(|detail| wrong(Fault::Credentials, detail))?;
    let region = region(settings, &files).await.ok_or_else(|| {
        let detail = "no region is known; set region under [repository.s3], or AWS_REGION";
        wrong(Fault::Other, detail.into())
    })?;
    let providers = ProviderConfig::without_region().with_region(Some(region.clone())).with_http_client(http.clone());
    let credentials = credentials(settings, files, region.clone(), providers).await;

    let (calculation, validation) = if settings.sdk_checksums {
        (RequestChecksumCalculation::WhenSupported, ResponseChecksumValidation::WhenSupported)
    } else {
        (RequestChecksumCalculation::WhenRequired, ResponseChecksumValidation::WhenRequired)
    };
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(Duration::from_secs(settings.attempt_timeout_s))
        .build();
    let mut config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .http_client(http)
        .interceptor(clock)
        .region(region)
        .credentials_provider(credentials)
        .force_path_style(settings.path_style)
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .stalled_stream_protection(StalledStreamProtectionConfig::enabled().grace_period(STALL_GRACE).build())
        .request_checksum_calculation(calculation)
        .response_checksum_validation(validation);
    config.set_endpoint_url(settings.endpoint.clone());
    Ok(aws_sdk_s3::Client::from_conf(config.build()))
}

/// The profile files to use; an unreadable one is an error here, because the SDK would silently go on without it.
fn profile_files(settings: &S3) -> Result<EnvConfigFiles, String> {
    let Some(path) = &settings.credentials_file else { return Ok(EnvConfigFiles::default()) };
    std::fs::File::open(path).map_err(|error| format!("cannot read credentials_file {}: {error}", path.display()))?;
    Ok(EnvConfigFiles::builder().include_default_config_file(true).with_file(EnvConfigFileKind::Credentials, path).build())
}

async fn region(settings: &S3, files: &EnvConfigFiles) -> Option<Region> {
    if let Some(region) = &settings.region {
        return Some(Region::new(region.clone()));
    }
    let mut profile = ProfileFileRegionProvider::builder().profile_files(files.clone());
    if let Some(name) = &settings.profile {
        profile = profile.profile_name(name);
    }
    let chain = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new()).or_else(profile.build());
    match settings.endpoint {
        // Not the metadata service: outside of AWS it does not answer, and waiting for it costs seconds.
        Some(_) => chain.or_else(Region::from_static(REGION_WITH_ENDPOINT)).region().await,
        None => chain.or_default_provider().region().await,
    }
}

async fn credentials(
    settings: &S3,
    files: EnvConfigFiles,
    region: Region,
    providers: ProviderConfig,
) -> SharedCredentialsProvider {
    if settings.credentials_file.is_none() && settings.profile.is_none() {
        // Told the region, the chain does not look for one of its own, in the metadata service at last.
        let chain = DefaultCredentialsChain::builder().region(region).configure(providers);
        return SharedCredentialsProvider::new(chain.build().await);
    }
    let mut profile = ProfileFileCredentialsProvider::builder().configure(&providers).profile_files(files);
    if let Some(name) = &settings.profile {
        profile = profile.profile_name(name);
    }
    SharedCredentialsProvider::new(profile.build())
}

/// HTTP with TLS that trusts the system's authorities and those of `ca_file`, through the proxy of the environment if any.
fn http_client(ca_file: Option<&Path>) -> Result<SharedHttpClient, String> {
    // The SDK asserts that there are some, although an endpoint may need none (plain HTTP) or only `ca_file`.
    let has_native_roots = !rustls_native_certs::load_native_certs().certs.is_empty();
    let mut trusted = TrustStore::empty().with_native_roots(has_native_roots);
    if let Some(path) = ca_file {
        trusted = trusted.with_pem_certificate(checked_authorities(path)?);
    }
    let tls = TlsContext::builder().with_trust_store(trusted).build().map_err(|error| error.to_string())?;
    Ok(Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder().proxy_config(ProxyConfig::from_env());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
        connector.tls_provider(Provider::rustls(CryptoMode::AwsLc)).tls_context(tls.clone()).build()
    }))
}

fn checked_authorities(path: &Path) -> Result<Vec<u8>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("cannot read ca_file {}: {error}", path.display()))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| format!("ca_file {} is not a PEM file: {error}", path.display()))?;
        roots.add(certificate).map_err(|error| format!("ca_file {} holds a bad certificate: {error}", path.display()))?;
    }
    if roots.is_empty() {
        return Err(format!("ca_file {} holds no certificate", path.display()));
    }
    Ok(pem)
}
