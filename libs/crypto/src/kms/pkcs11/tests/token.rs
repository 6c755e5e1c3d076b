//! A new SoftHSM token for one test, in a process of its own.
//!
//! The parent writes the token's folder and configuration and starts this test binary again for
//! the one test, with `SOFTHSM2_CONF` in the child's environment: nobody's environment changes
//! while threads run, under `cargo test` as under nextest.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    session::{Session, UserType},
    slot::Slot,
    types::AuthPin,
};
use millrace_platform::{
    disk::{Disk, RealDisk},
    durable,
    entropy::OsEntropy,
};
use zeroize::Zeroizing;

use super::super::{KmsError, Pin, Pkcs11Token};

pub(super) const LABEL: &str = "millrace-test";
pub(super) const PIN: &str = "user-pin-0815";
const OFFICER_PIN: &str = "officer-pin-0816";
/// Set in the child only.
const CHILD: &str = "MILLRACE_TEST_TOKEN";

/// SoftHSM's library.
pub(super) fn library() -> PathBuf {
    let named = std::env::var_os("SOFTHSM2_LIB").map(PathBuf::from);
    let usual = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so",
        "/usr/local/lib/softhsm/libsofthsm2.so",
    ];
    named.into_iter().chain(usual.map(PathBuf::from)).find(|p| p.exists()).expect(
        "SoftHSM is missing: install the Debian package softhsm2 (apt-get install softhsm2), or \
         name its libsofthsm2.so in SOFTHSM2_LIB",
    )
}

/// Runs `body` on a new token. `name` is the calling test's.
pub(super) fn on_a_token(name: &str, body: fn(&Token)) {
    if std::env::var_os(CHILD).is_some() {
        return body(&Token::initialised());
    }
    library();
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens");
    RealDisk.create_dir_all(&tokens).unwrap();
    let conf = dir.path().join("softhsm2.conf");
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        tokens.display()
    );
    durable::replace(&RealDisk, &conf, text.as_bytes()).unwrap();
    let module = module_path!().trim_end_matches("::token");
    let module = module.split_once("::").map_or(module, |(_, inner)| inner);
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{name}"), "--nocapture"])
        .env("SOFTHSM2_CONF", &conf)
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && said.contains("1 passed"),
        "in its own process:\n{said}\n{}",
        String::from_utf8_lossy(&child.stderr)
    );
}

pub(super) struct Token {
    pub(super) library: PathBuf,
    context: Pkcs11,
}

impl Token {
    /// Makes the token, as its owner would: officer, label, user PIN.
    fn initialised() -> Self {
        let library = library();
        let context = Pkcs11::new(&library).unwrap();
        context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
        let slot = context.get_all_slots().unwrap()[0];
        context.init_token(slot, &AuthPin::from(OFFICER_PIN), LABEL).unwrap();
        let token = Self { library, context };
        let session = token.context.open_rw_session(token.slot()).unwrap();
        session.login(UserType::So, Some(&AuthPin::from(OFFICER_PIN))).unwrap();
        session.init_pin(&AuthPin::from(PIN)).unwrap();
        session.logout().unwrap();
        token
    }

    fn slot(&self) -> Slot {
        self.context.get_slots_with_initialized_token().unwrap()[0]
    }

    pub(super) fn try_open(&self, pin: &str) -> Result<Pkcs11Token, KmsError> {
        let pin = Pin::new(Zeroizing::new(pin.into()));
        Pkcs11Token::open(&self.library, LABEL, pin, Arc::new(OsEntropy))
    }

    pub(super) fn open(&self) -> Pkcs11Token {
        self.try_open(PIN).unwrap()
    }

    /// A second session, logged in as the provider's user is.
    pub(super) fn session(&self) -> Session {
        self.context.open_rw_session(self.slot()).unwrap()
    }

    /// What a restarted token service leaves: no session, no login, no initialised library.
    pub(super) fn restart(&self) {
        self.context.clone().finalize().unwrap();
    }

    pub(super) fn change_pin(&self, new: &str) {
        self.session().set_pin(&AuthPin::from(PIN), &AuthPin::from(new)).unwrap();
    }
}
