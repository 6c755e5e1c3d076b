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
    let key = KeyPair::generate()?;
    let request = EnrolRequest {
        claim_code: claim_code.trim().to_owned(),
        csr_pem: CertificateParams::new(Vec::<String>::new())?.serialize_request(&key)?.pem()?,
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
    };
    // Last: its presence means that everything before is there.
    put("identity.json", &serde_json::to_string_pretty(&stored).unwrap_or_default())?;
    Ok(answer.device_id)
}

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
        let key_path = dir.join("queue.key");
        let mut key = [0u8; 32];
        hex::decode_to_slice(secret(disk, &key_path)?.trim(), &mut key)
            .map_err(|e| file_error(&key_path, e))?;
        Ok(Self {
            url: stored.url,
            device: stored.device,
            not_after_ns: stored.not_after_ns,
            certificate_pem: text(disk, &dir.join("device.pem"))?,
            key_pem: secret(disk, &dir.join("device.key"))?,
            ca_pem: text(disk, &dir.join("server-ca.pem"))?,
            queue_key: Key256::new(key),
        })
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
