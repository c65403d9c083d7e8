//! TLS: whom we trust, and whether a registry on this machine speaks it.

use std::sync::Arc;
use std::time::Duration;

use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// How long a registry on this machine may take to say that it does not speak TLS.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections to those whom one of `authorities` (PEM) vouches for.
pub fn config(authorities: &[u8]) -> TlsConfig {
    let certificates = parse_pem(authorities).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let certificates: Vec<Certificate<'static>> = certificates.collect();
    TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::new_with_certs(&certificates))
        .build()
}

/// Whether the registry at `host` speaks TLS, whoever it says that it is.
pub fn is_spoken(agent: &Agent, host: &str) -> bool {
    let request = agent.get(format!("https://{host}/v2/"));
    let request = request.config().timeout_global(Some(PATIENCE)).build();
    match request.call() {
        Ok(_) => true,
        // It was TLS, and the certificate is what is wrong: that is to be told, and not to be gone around.
        Err(ureq::Error::Rustls(error)) => matches!(error, rustls::Error::InvalidCertificate(_)),
        Err(ureq::Error::Io(error)) => {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
        }
        Err(_) => false,
    }
}
