//! TLS for both runtimes: rustls with the ring provider, named explicitly, over any stream.

use futures_rustls::{TlsAcceptor, TlsConnector};
use ice_host::runtime::BoxStream;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where Linux distributions keep the public authorities.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

fn invalid(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let fail = |e| invalid(format!("{}: {e}", path.display()));
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(fail)?.collect();
    let all = all.map_err(fail)?;
    if all.is_empty() { Err(invalid(format!("{}: no certificate in it", path.display()))) } else { Ok(all) }
}

fn roots(path: &Path) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(certificates(path)?);
    if added == 0 {
        return Err(invalid(format!("{}: none of its {ignored} certificates can be used", path.display())));
    }
    Ok(roots)
}

/// The accepting side, from PEM files: `cert` holds the chain, the node's own certificate first.
#[derive(Clone)]
pub struct TlsServer(TlsAcceptor);

impl std::fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsServer")
    }
}

impl TlsServer {
    /// Reads certificate and key. Clients show none.
    pub fn from_files(cert: &Path, key: &Path) -> io::Result<TlsServer> {
        TlsServer::new(cert, key, None)
    }

    /// The same, and only clients are served whose certificate an authority in the PEM file `client_ca` has signed.
    pub fn with_client_ca(cert: &Path, key: &Path, client_ca: &Path) -> io::Result<TlsServer> {
        TlsServer::new(cert, key, Some(client_ca))
    }

    fn new(cert: &Path, key: &Path, client_ca: Option<&Path>) -> io::Result<TlsServer> {
        let chain = certificates(cert)?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(|e| invalid(format!("{}: {e}", key.display())))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = match client_ca {
            None => WebPkiClientVerifier::no_client_auth(),
            Some(path) => WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path)?), provider.clone())
                .build()
                .map_err(|e| invalid(format!("{}: {e}", path.display())))?,
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(invalid)?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .map_err(|e| invalid(format!("{}: {e}", cert.display())))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsServer(TlsAcceptor::from(Arc::new(config))))
    }

    /// The handshake. `true`: the client chose HTTP/2.
    pub async fn accept(&self, stream: BoxStream) -> io::Result<(BoxStream, bool)> {
        let stream = self.0.accept(stream).await?;
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok((Box::new(stream), h2))
    }
}

/// The connecting side.
#[derive(Clone)]
pub struct TlsClient(TlsConnector);

impl std::fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsClient")
    }
}

impl TlsClient {
    /// Trusts the authorities in the PEM file `cacert`, and no others; without one, those that the system trusts.
    pub fn from_file(cacert: Option<&Path>) -> io::Result<TlsClient> {
        let path = match cacert {
            Some(path) => path.to_owned(),
            None => SYSTEM_ROOTS.iter().map(PathBuf::from).find(|p| p.exists()).ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, "this system has no list of trusted authorities: set cacert")
            })?,
        };
        let roots = roots(&path)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(invalid)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // An upgrade needs HTTP/1.1.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsClient(TlsConnector::from(Arc::new(config))))
    }

    /// The handshake with the server called `host`.
    pub async fn connect(&self, host: &str, stream: BoxStream) -> io::Result<BoxStream> {
        let name = ServerName::try_from(host.to_owned()).map_err(invalid)?;
        Ok(Box::new(self.0.connect(name, stream).await?))
    }
}

/// Fills `bytes` with what nobody can guess.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    let provider = rustls::crypto::ring::default_provider();
    provider.secure_random.fill(bytes).map_err(|_| io::Error::other("no randomness from the system"))
}
