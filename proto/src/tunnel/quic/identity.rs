//! Who is who in TLS, by the keys that WireGuard has: nothing is configured for QUIC.
//!
//! A key of X25519 and one of Ed25519 are points of the same curve in two forms (RFC 7748, section 4.1), so whoever has the
//! private half of the one can sign as the other: the conversion of XEdDSA (Perrin, "The XEdDSA and VXEdDSA Signature
//! Schemes", section 2.3). Both ends show a certificate that they signed themselves, since TLS implementations know X.509
//! and few know bare keys (RFC 7250). Nothing of it counts but the key and the proof that its owner speaks (RFC 8446,
//! section 4.4.3).

use crate::{PublicKey, SecretKey};
use blake2::digest::Mac;
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::{Scalar, clamp_integer};
use ed25519_dalek::VerifyingKey;
use ed25519_dalek::hazmat::{ExpandedSecretKey, raw_sign};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{CertificateError, CipherSuite, DigitallySignedStruct, DistinguishedName, NamedGroup};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use std::collections::HashSet;
use std::sync::Arc;

/// The protocol spoken within, and its version (RFC 7301): what is in DATAGRAM frames. Another content has another name.
const ALPN: &[u8] = b"msp/1";

/// SubjectPublicKeyInfo of Ed25519 in front of the key's 32 octets (RFC 8410, section 4).
const SPKI: [u8; 12] = [0x30, 42, 0x30, 5, 6, 3, 43, 101, 112, 3, 33, 0];

/// A TLS client that is `local`, and speaks to nobody but `core`.
pub(super) fn client(local: &SecretKey, core: PublicKey) -> Result<rustls::ClientConfig, Error> {
    let provider = provider();
    let check = Arc::new(Peers { known: Arc::new(HashSet::from([core])), provider: provider.clone() });
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(check)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified(local)?)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Nothing of one connection is used in another: no ticket to track a box by, no data that could be played again.
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// A TLS server that is `local`, and speaks to those whose keys are `known`.
pub(super) fn server(local: &SecretKey, known: Arc<HashSet<PublicKey>>) -> Result<rustls::ServerConfig, Error> {
    let provider = provider();
    let check = Arc::new(Peers { known, provider: provider.clone() });
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(check)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified(local)?)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// What is offered and taken: one group and two ciphers, the faster one of this processor first.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.kx_groups.retain(|group| group.name() == NamedGroup::X25519);
    let wanted = [CipherSuite::TLS13_AES_128_GCM_SHA256, CipherSuite::TLS13_CHACHA20_POLY1305_SHA256];
    provider.cipher_suites.retain(|suite| wanted.contains(&suite.suite()));
    let slow = !has_aes();
    provider.cipher_suites.sort_by_key(|suite| (suite.suite() == wanted[0]) == slow);
    Arc::new(provider)
}

/// Whether the processor has instructions for AES: small boxes often have none, and ChaCha20 is several times faster there.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// The key that a certificate shows, as the configuration writes it.
pub(super) fn key_of(certificate: &CertificateDer<'_>) -> Option<PublicKey> {
    let spki = ParsedCertificate::try_from(certificate).ok()?.subject_public_key_info();
    let key: [u8; 32] = spki.strip_prefix(&SPKI)?.try_into().ok()?;
    let point = CompressedEdwardsY(key).decompress()?;
    // Both signs of a point are one key of X25519: who has the private half of the one has the other's.
    Some(PublicKey::unchecked(point.to_montgomery().to_bytes()))
}

/// Checks the other end: the server's key at a box, a client's at a core.
#[derive(Debug)]
struct Peers {
    known: Arc<HashSet<PublicKey>>,
    provider: Arc<CryptoProvider>,
}

impl Peers {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let key = key_of(certificate).ok_or(CertificateError::BadEncoding)?;
        if self.known.contains(&key) { Ok(()) } else { Err(CertificateError::ApplicationVerificationFailure.into()) }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }
}

/// Only TLS 1.3 is spoken.
fn too_old() -> Error {
    Error::PeerIncompatible(rustls::PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig)
}

impl ServerCertVerifier for Peers {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(certificate).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Peers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(certificate).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// An X25519 key that signs.
struct Ed25519Key {
    secret: ExpandedSecretKey,
    public: VerifyingKey,
}

impl Ed25519Key {
    fn new(key: &SecretKey) -> Result<Ed25519Key, Error> {
        let bytes = key.x25519().to_bytes();
        let scalar = Scalar::from_bytes_mod_order(clamp_integer(bytes));
        let point = EdwardsPoint::mul_base(&scalar).compress();
        // Of the two points with this X25519 key the one whose x is even; its private half may be the negative one.
        let odd = point.0[31] >> 7 == 1;
        let mut even = point.0;
        even[31] &= 0x7f;
        let public = VerifyingKey::from_bytes(&even).map_err(|error| Error::General(error.to_string()))?;
        // What a signature's nonce is drawn from must be as secret as the key, and must not be the key (RFC 8032,
        // section 5.1.6).
        let mut prefix = <blake2::Blake2sMac<blake2::digest::consts::U32> as Mac>::new_from_slice(&bytes)
            .expect("a key of 32 bytes is within BLAKE2s's limit of 32");
        prefix.update(b"msp ed25519 nonce v1");
        let hash_prefix = prefix.finalize().into_bytes().into();
        let secret = ExpandedSecretKey { scalar: if odd { -scalar } else { scalar }, hash_prefix };
        Ok(Ed25519Key { secret, public })
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        raw_sign::<ed25519_dalek::Sha512>(&self.secret, message, &self.public).to_bytes().to_vec()
    }
}

impl std::fmt::Debug for Ed25519Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ed25519Key(hidden)")
    }
}

/// What rustls has sign for it.
#[derive(Clone, Debug)]
struct Signing(Arc<Ed25519Key>);

impl SigningKey for Signing {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SignatureScheme::ED25519).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for Signing {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.0.sign(message))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

fn certified(key: &SecretKey) -> Result<CertifiedKey, Error> {
    let key = Arc::new(Ed25519Key::new(key)?);
    Ok(CertifiedKey::new(vec![certificate(&key)], Arc::new(Signing(key))))
}

/// DER: a tag, a length, and the parts one after the other.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut out = vec![tag];
    match content.len() {
        short @ 0..0x80 => out.push(short as u8),
        longer @ 0x80..0x100 => out.extend([0x81, longer as u8]),
        // The certificate below is the longest thing written: some 270 octets.
        long => out.extend([&[0x82][..], &(long as u16).to_be_bytes()].concat()),
    }
    out.extend(content);
    out
}

/// The least certificate that libraries take (RFC 5280, section 4.1), signed by its own key: a name and dates must stand
/// there, and mean nothing.
///
/// ```text
/// SEQUENCE                                  Certificate
///   SEQUENCE                                tbsCertificate
///     [0] INTEGER 2                         version 3
///     INTEGER 1                             serialNumber
///     SEQUENCE OID 1.3.101.112              signature: Ed25519 (RFC 8410)
///     SEQUENCE SET SEQUENCE OID, "msp"      issuer: a common name
///     SEQUENCE 1970, 9999                   validity: none (section 4.1.2.5)
///     SEQUENCE SET SEQUENCE OID, "msp"      subject: the same
///     SEQUENCE                              subjectPublicKeyInfo
///       SEQUENCE OID 1.3.101.112
///       BIT STRING                          the key
///   SEQUENCE OID 1.3.101.112                signatureAlgorithm
///   BIT STRING                              signature
/// ```
fn certificate(key: &Ed25519Key) -> CertificateDer<'static> {
    const INTEGER: u8 = 2;
    const BITS: u8 = 3;
    const OID: u8 = 6;
    const UTF8: u8 = 12;
    const UTC_TIME: u8 = 23;
    const GENERALIZED_TIME: u8 = 24;
    const SEQUENCE: u8 = 0x30;
    const SET: u8 = 0x31;
    const VERSION: u8 = 0xa0;
    let algorithm = der(SEQUENCE, &[&der(OID, &[&[43, 101, 112]])]);
    // 2.5.4.3 is the common name.
    let name = der(SEQUENCE, &[&der(SET, &[&der(SEQUENCE, &[&der(OID, &[&[85, 4, 3]]), &der(UTF8, &[b"msp"])])])]);
    let validity = der(SEQUENCE, &[&der(UTC_TIME, &[b"700101000000Z"]), &der(GENERALIZED_TIME, &[b"99991231235959Z"])]);
    let version = der(VERSION, &[&der(INTEGER, &[&[2]])]);
    let serial = der(INTEGER, &[&[1]]);
    let spki = [&SPKI[..], key.public.as_bytes()].concat();
    let signed = der(SEQUENCE, &[&version, &serial, &algorithm, &name, &validity, &name, &spki]);
    let signature = der(BITS, &[&[0], &key.sign(&signed)]);
    CertificateDer::from(der(SEQUENCE, &[&signed, &algorithm, &signature]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::Verifier;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_a_key_signs_is_its_own_and_its_certificate_names_it(secret: [u8; 32], message: Vec<u8>) {
            let secret = SecretKey::from_bytes(secret);
            let key = Ed25519Key::new(&secret).expect("each private key has a public one");
            let signature = ed25519_dalek::Signature::from_slice(&key.sign(&message)).expect("64 octets");
            prop_assert!(key.public.verify(&message, &signature).is_ok());
            prop_assert!(key.public.verify(&[&message[..], b"x"].concat(), &signature).is_err());
            let certificate = certificate(&key);
            prop_assert_eq!(key_of(&certificate), Some(secret.public()));
            prop_assert!(certificate.len() <= 272, "{}", certificate.len());
        }

        #[test]
        fn certificates_that_are_none_name_nobody(octets: Vec<u8>) {
            prop_assert_eq!(key_of(&CertificateDer::from(octets)), None);
        }
    }

    #[test]
    fn a_certificate_cut_or_changed_names_nobody_or_another() {
        let secret = SecretKey::from_bytes([5; 32]);
        let whole = certificate(&Ed25519Key::new(&secret).expect("a key")).to_vec();
        for at in 0..whole.len() {
            assert_eq!(key_of(&CertificateDer::from(&whole[..at])), None, "{at}");
            let mut changed = whole.clone();
            changed[at] ^= 0x40;
            // The signature over it is of no interest; that the key's owner speaks TLS shows itself.
            let _ = key_of(&CertificateDer::from(changed));
        }
    }
}
