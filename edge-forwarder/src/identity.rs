//! Who this device is: key, certificate, server, queue key.
//!
//! Owns: the files of the data directory but the queue. The private key is made here and never
//! leaves; both keys are files of mode 0600, refused if looser. Never: logs a key.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use millrace_crypto::key::{Key256, KeyError, TenantKeySource, TenantKeys};
use millrace_platform::{
    disk::{Disk, read_file},
    durable,
    entropy::{Entropy, random_bytes},
};
use millrace_protocol::{
    device::{EnrolAnswer, EnrolRequest},
    ids::{DeviceId, TenantId},
};
use rcgen::{CertificateParams, KeyPair};
use serde::{Deserialize, Serialize};

const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why the identity cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file.
    #[error("{path}: {detail}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// Not enrolled.
    #[error("this device is not enrolled: run `millrace-edge enroll URL --claim CODE --ca FILE`")]
    NotEnrolled,
    /// Enrolled already.
    #[error("this folder already holds device {0}; use another --data-dir for another device")]
    Enrolled(DeviceId),
    /// The server refused or could not be reached.
    #[error("the server did not enrol this device: {0}")]
    Refused(String),
    /// The key or request could not be made.
    #[error("the device key cannot be made: {0}")]
    Key(#[from] rcgen::Error),
}

/// What is stored about the enrolment.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stored {
    url: String,
    device: DeviceId,
    tenant: TenantId,
    not_after_ns: i64,
    /// Which pair of key and certificate counts; rises with each renewal.
    #[serde(default)]
    generation: u64,
}

/// The files of a pair of key and certificate.
fn pair(dir: &Path, generation: u64) -> (PathBuf, PathBuf) {
    let name = match generation {
        0 => "device".to_owned(),
        n => format!("device-{n}"),
    };
    (dir.join(format!("{name}.key")), dir.join(format!("{name}.pem")))
}

/// An enrolled device.
pub struct Identity {
    /// The server, `https://host:port`.
    pub url: String,
    /// This device.
    pub device: DeviceId,
    /// Its certificate, PEM.
    pub certificate_pem: String,
    /// Its private key, PEM.
    pub key_pem: String,
    /// The server's CA, PEM.
    pub ca_pem: String,
    /// When the certificate ends, ns since the Unix epoch.
    pub not_after_ns: i64,
    queue_key: Key256,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("device", &self.device).finish_non_exhaustive()
    }
}

fn file_error(path: &Path, e: impl std::fmt::Display) -> IdentityError {
    IdentityError::File { path: path.to_path_buf(), detail: e.to_string() }
}

fn text(disk: &dyn Disk, path: &Path) -> Result<String, IdentityError> {
    let bytes = read_file(disk, path, FILE_BYTES_MAX).map_err(|e| file_error(path, e))?;
    String::from_utf8(bytes).map_err(|e| file_error(path, e))
}

fn secret(disk: &dyn Disk, path: &Path) -> Result<String, IdentityError> {
    let mode = disk.mode(path).map_err(|e| file_error(path, e))?;
    if mode & 0o077 != 0 {
        return Err(file_error(path, format!("mode {mode:o} lets others read it; chmod 600 it")));
    }
    text(disk, path)
}

/// Makes a key, asks the server to enrol it with a claim code, stores the answer. `send` posts
/// the request to the server.
pub fn enrol(
    disk: &dyn Disk,
    entropy: &dyn Entropy,
    dir: &Path,
    url: &str,
    ca_pem: &str,
    claim_code: &str,
    send: impl FnOnce(&EnrolRequest) -> Result<EnrolAnswer, String>,
) -> Result<DeviceId, IdentityError> {
    disk.create_dir_all(dir).map_err(|e| file_error(dir, e))?;
    let stored_path = dir.join("identity.json");
    if disk.exists(&stored_path).map_err(|e| file_error(&stored_path, e))? {
        let stored: Stored = serde_json::from_str(&text(disk, &stored_path)?)
            .map_err(|e| file_error(&stored_path, e))?;
        return Err(IdentityError::Enrolled(stored.device));
    }
    let (key, csr_pem) = request()?;
    let request = EnrolRequest {
        claim_code: claim_code.trim().to_owned(),
        csr_pem,
        name: host_name(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let answer = send(&request).map_err(IdentityError::Refused)?;
    let put = |name: &str, text: &str| {
        let path = dir.join(name);
        durable::replace(disk, &path, text.as_bytes()).map_err(|e| file_error(&path, e))
    };
    let queue_key = hex::encode(random_bytes::<32>(entropy));
    put("device.key", &key.serialize_pem())?;
    put("queue.key", &queue_key)?;
    put("device.pem", &answer.certificate_pem)?;
    put("server-ca.pem", ca_pem)?;
    let stored = Stored {
        url: url.trim_end_matches('/').to_owned(),
        device: answer.device_id,
        tenant: answer.tenant_id,
        not_after_ns: answer.not_after_ns,
        generation: 0,
    };
    // Last: its presence means that everything before is there.
    put("identity.json", &serde_json::to_string_pretty(&stored).unwrap_or_default())?;
    Ok(answer.device_id)
}

/// A key, and a request to have it signed.
fn request() -> Result<(KeyPair, String), IdentityError> {
    let key = KeyPair::generate()?;
    let csr = CertificateParams::new(Vec::<String>::new())?.serialize_request(&key)?.pem()?;
    Ok((key, csr))
}

/// A renewal on its way: the next key, and the request to have it signed.
pub struct Renewal {
    key: KeyPair,
    /// PKCS#10, PEM.
    pub csr_pem: String,
}

impl Renewal {
    /// Makes the next key.
    pub fn begin() -> Result<Self, IdentityError> {
        let (key, csr_pem) = request()?;
        Ok(Self { key, csr_pem })
    }

    /// Stores the next pair, then says that it counts: at every moment in between the folder
    /// holds a key with its certificate. What was before goes last.
    pub fn finish(
        self,
        disk: &dyn Disk,
        dir: &Path,
        answer: &EnrolAnswer,
    ) -> Result<Identity, IdentityError> {
        let path = dir.join("identity.json");
        let stored: Stored =
            serde_json::from_str(&text(disk, &path)?).map_err(|e| file_error(&path, e))?;
        if stored.device != answer.device_id {
            return Err(IdentityError::Refused("it renewed another device".to_owned()));
        }
        let put = |path: &Path, text: &str| {
            durable::replace(disk, path, text.as_bytes()).map_err(|e| file_error(path, e))
        };
        let (before, next) = (stored.generation, stored.generation + 1);
        let (key_path, certificate_path) = pair(dir, next);
        put(&key_path, &self.key.serialize_pem())?;
        put(&certificate_path, &answer.certificate_pem)?;
        let stored = Stored { generation: next, not_after_ns: answer.not_after_ns, ..stored };
        put(&path, &serde_json::to_string_pretty(&stored).unwrap_or_default())?;
        let (key_path, certificate_path) = pair(dir, before);
        for old in [key_path, certificate_path] {
            if let Err(error) = disk.remove(&old) {
                tracing::warn!(%error, path = %old.display(), "the old key is still here");
            }
        }
        Identity::load(disk, dir)
    }
}

/// A certificate is renewed when this much of its 90 days is left: a third.
const RENEW_BEFORE_NS: i64 = 30 * 24 * 3600 * 1_000_000_000;

/// The host's name, for people.
pub fn host_name() -> String {
    let read = read_file(&millrace_platform::disk::RealDisk, Path::new("/etc/hostname"), 4096);
    let name = read.ok().and_then(|b| String::from_utf8(b).ok()).unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "device".to_owned() } else { name.to_owned() }
}

impl Identity {
    /// Loads an enrolled device.
    pub fn load(disk: &dyn Disk, dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join("identity.json");
        if !disk.exists(&path).map_err(|e| file_error(&path, e))? {
            return Err(IdentityError::NotEnrolled);
        }
        let stored: Stored =
            serde_json::from_str(&text(disk, &path)?).map_err(|e| file_error(&path, e))?;
        let (device_key, device_certificate) = pair(dir, stored.generation);
        let key_path = dir.join("queue.key");
        let mut key = [0u8; 32];
        hex::decode_to_slice(secret(disk, &key_path)?.trim(), &mut key)
            .map_err(|e| file_error(&key_path, e))?;
        Ok(Self {
            url: stored.url,
            device: stored.device,
            not_after_ns: stored.not_after_ns,
            certificate_pem: text(disk, &device_certificate)?,
            key_pem: secret(disk, &device_key)?,
            ca_pem: text(disk, &dir.join("server-ca.pem"))?,
            queue_key: Key256::new(key),
        })
    }

    /// Whether it is time for the next certificate.
    pub fn is_due(&self, now_ns: i64) -> bool {
        self.not_after_ns.saturating_sub(now_ns) < RENEW_BEFORE_NS
    }

    /// The keys of the queue, owned by this device.
    pub fn queue_keys(&self) -> Arc<dyn TenantKeySource> {
        let keys = TenantKeys::new(self.device.0, 1, self.queue_key.duplicate());
        Arc::new(QueueKeys(Arc::new(keys)))
    }
}

struct QueueKeys(Arc<TenantKeys>);

impl TenantKeySource for QueueKeys {
    fn current(&self, owner: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
        self.version(owner, 1)
    }

    fn version(&self, owner: &[u8; 16], version: u32) -> Result<Arc<TenantKeys>, KeyError> {
        if owner != self.0.tenant() || version != 1 {
            // Frames of another device: their key is not here and never will be. They are skipped
            // and counted as a gap; refusing to start would keep this device from working.
            return Err(KeyError::Gone { tenant: hex::encode(owner) });
        }
        Ok(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use millrace_platform::sim::{SimDisk, SimEntropy, disk::Faults};
    use rcgen::{CertificateSigningRequestParams, Issuer};

    use super::*;

    fn signed(csr_pem: &str, not_after_ns: i64) -> EnrolAnswer {
        let issuer = Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap());
        let csr = CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        EnrolAnswer {
            device_id: DeviceId([1; 16]),
            tenant_id: TenantId([2; 16]),
            certificate_pem: csr.signed_by(&issuer).unwrap().pem(),
            ca_pem: String::new(),
            not_after_ns,
        }
    }

    /// Whether the certificate is of the key.
    fn fit(identity: &Identity) -> bool {
        let key = KeyPair::from_pem(&identity.key_pem).unwrap();
        let body: String =
            identity.certificate_pem.lines().filter(|l| !l.starts_with('-')).collect();
        let der = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).unwrap();
        let raw = rcgen::PublicKeyData::der_bytes(&key);
        der.windows(raw.len()).any(|w| w == raw)
    }

    #[test]
    fn e3_e9_a_power_cut_at_every_step_of_a_renewal_leaves_a_key_with_its_certificate() {
        let dir = Path::new("/edge");
        let (mut old, mut new) = (0, 0);
        for cut in 0..60 {
            let disk = SimDisk::new();
            let dice = SimEntropy::seeded(cut);
            let sign = |request: &EnrolRequest| Ok(signed(&request.csr_pem, 1));
            enrol(&disk, &dice, dir, "https://s", "ca", "code", sign).unwrap();
            disk.set_faults(Faults { cut_after: Some(disk.ops() + cut), ..Faults::default() });
            let renewal = Renewal::begin().unwrap();
            let answer = signed(&renewal.csr_pem, 2);
            let finished = renewal.finish(&disk, dir, &answer).is_ok();
            disk.power_cycle(&dice);
            let identity = Identity::load(&disk, dir).unwrap();
            assert!(fit(&identity), "cut {cut}");
            assert!(identity.not_after_ns == 2 || !finished, "cut {cut}");
            if identity.not_after_ns == 2 { new += 1 } else { old += 1 }
        }
        assert!(old > 5 && new > 5, "{old} cuts before, {new} after");
    }

    #[test]
    fn a_certificate_is_due_in_its_last_third_and_a_strangers_is_refused() {
        let (disk, dice, dir) = (SimDisk::new(), SimEntropy::seeded(1), Path::new("/edge"));
        let day = 24 * 3600 * 1_000_000_000;
        let sign = |request: &EnrolRequest| Ok(signed(&request.csr_pem, 90 * day));
        enrol(&disk, &dice, dir, "https://s", "ca", "code", sign).unwrap();
        let identity = Identity::load(&disk, dir).unwrap();
        assert!(!identity.is_due(59 * day) && identity.is_due(61 * day));
        let renewal = Renewal::begin().unwrap();
        let answer = EnrolAnswer { device_id: DeviceId([9; 16]), ..signed(&renewal.csr_pem, 1) };
        assert!(renewal.finish(&disk, dir, &answer).is_err());
        assert_eq!(Identity::load(&disk, dir).unwrap().not_after_ns, 90 * day);
    }
}
