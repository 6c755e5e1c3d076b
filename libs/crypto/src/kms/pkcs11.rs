//! Root keys in a PKCS#11 token (an HSM, or SoftHSM for tests): they never leave it.
//!
//! Each root key is an AES-256 object of the token: private, sensitive, never extractable, made
//! inside, found by its label, which is its id. Wrap: CKM_AES_GCM by C_Encrypt with the wrap
//! context as associated data. C_WrapKey would need the tenant's key as an object of the token
//! and binds no context. Wrapped bytes: 12 nonce, 32 ciphertext, 16 tag.
//!
//! Owns: one session, and its renewal when the token was away. Calls block for as long as the
//! token takes, as all of [`KeyProvider`] may; one call at a time (the ledger caches what it
//! unwrapped, so this is no hot path).
//! Never: takes the PIN from an argument or the environment, shows it, or tries a PIN again that
//! the token refused, because tokens lock themselves after a few.
//! Limit: a destroyed key is gone from this token; copies that its owner made of the token
//! (backups, a cluster's other members) are the owner's to destroy.
//!
//! To use it, start-up opens this instead of [`super::local::LocalKeyFile`], with the library's
//! path, the token's label and [`Pin::from_file`], and hands it to
//! [`KeyLedger::open`](crate::ledger::KeyLedger::open). A ledger belongs to the provider that
//! made its root: with another one its keys do not open. The library is initialised once for the
//! process and stays so.

mod pin;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11},
    error::{Error, RvError},
    mechanism::{Mechanism, aead::GcmParams},
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::{Session, SessionState, UserType},
    slot::Slot,
};
use millrace_platform::entropy::{Entropy, random_bytes};
use zeroize::Zeroizing;

pub use self::pin::Pin;
use super::{KeyProvider, KmsError, RootKeyId, WrapContext, WrappedKey};
use crate::{aead::TAG_BYTES, key::Key256};

const NONCE_BYTES: usize = 12;
const WRAPPED_BYTES: usize = NONCE_BYTES + 32 + TAG_BYTES;
const TAG_BITS: u64 = TAG_BYTES as u64 * 8;
const KEY_BYTES: u64 = 32;

enum Connection {
    /// Logged in.
    Open(Session),
    /// The token was away, or has not been asked yet.
    Lost,
    /// The token refused the PIN; asking again could lock it.
    Refused,
}

/// See the module head.
pub struct Pkcs11Token {
    library: PathBuf,
    label: String,
    pin: Pin,
    entropy: Arc<dyn Entropy>,
    context: Pkcs11,
    connection: Mutex<Connection>,
}

impl fmt::Debug for Pkcs11Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pkcs11Token")
            .field("library", &self.library)
            .field("label", &self.label)
            .finish_non_exhaustive()
    }
}

/// Whether another session, with another login, may do what this one could not.
fn is_lost(e: &Error) -> bool {
    matches!(
        e,
        Error::Pkcs11(
            RvError::SessionHandleInvalid
                | RvError::SessionClosed
                | RvError::UserNotLoggedIn
                | RvError::DeviceRemoved
                | RvError::TokenNotPresent
                | RvError::SlotIdInvalid
                | RvError::CryptokiNotInitialized,
            _
        )
    )
}

/// What PKCS#11 3 tokens say of a tag that does not fit; the binding has no name for it.
const CKR_AEAD_DECRYPT_FAILED: u64 = 0x42;

/// A token's answer to a ciphertext whose tag does not fit. SoftHSM 2.6 says it by a general
/// error, so an inner failure of the token while decrypting reads the same: neither gives a key.
fn is_forged(e: &Error) -> bool {
    use RvError::{EncryptedDataInvalid, EncryptedDataLenRange, GeneralError, UnknownErrorCode};
    matches!(
        e,
        Error::Pkcs11(
            EncryptedDataInvalid
                | EncryptedDataLenRange
                | GeneralError
                | UnknownErrorCode(CKR_AEAD_DECRYPT_FAILED),
            Function::Decrypt
        )
    )
}

impl Pkcs11Token {
    /// Loads the PKCS#11 library and logs in to the token with that label.
    pub fn open(
        library: &Path,
        label: &str,
        pin: Pin,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, KmsError> {
        let context = Pkcs11::new(library).map_err(|e| {
            let path = library.display();
            KmsError::Unavailable(format!("the PKCS#11 library {path} does not load: {e}"))
        })?;
        let token = Self {
            library: library.to_path_buf(),
            label: label.to_owned(),
            pin,
            entropy,
            context,
            connection: Mutex::new(Connection::Lost),
        };
        token.with_session(|_| Ok(()))?;
        Ok(token)
    }

    fn unavailable(&self, e: impl fmt::Display) -> KmsError {
        KmsError::Unavailable(format!("token `{}`: {e}", self.label))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `call` in the session; once more in a new one if the token was away meanwhile.
    fn with_session<T>(&self, call: impl Fn(&Session) -> Result<T, Error>) -> Result<T, KmsError> {
        self.with_session_or(call, |e| self.unavailable(e))
    }

    fn with_session_or<T>(
        &self,
        call: impl Fn(&Session) -> Result<T, Error>,
        blame: impl Fn(Error) -> KmsError,
    ) -> Result<T, KmsError> {
        let mut connection = self.lock();
        if let Connection::Open(session) = &*connection {
            match call(session) {
                Err(e) if is_lost(&e) => {
                    tracing::warn!(token = %self.label, "the token's session is lost: {e}");
                    *connection = Connection::Lost;
                }
                done => return done.map_err(blame),
            }
        }
        if matches!(*connection, Connection::Refused) {
            return Err(self.unavailable(
                "it refused the PIN and is not asked again; correct the PIN file and restart",
            ));
        }
        let session = self.connect().inspect_err(|(_, refused)| {
            if *refused {
                *connection = Connection::Refused;
            }
        });
        let session = session.map_err(|(e, _)| e)?;
        let done = call(&session).map_err(blame);
        *connection = Connection::Open(session);
        done
    }

    /// A new session, logged in; an error says whether the PIN was refused.
    fn connect(&self) -> Result<Session, (KmsError, bool)> {
        let plain = |e: Error| (self.unavailable(e), false);
        match self.context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(e) => return Err(plain(e)),
        }
        let slot = self.slot().map_err(|e| (e, false))?;
        let session = self.context.open_rw_session(slot).map_err(plain)?;
        match session.login_with_raw(UserType::User, &self.pin.for_login()) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
            Err(e) => {
                use RvError::{PinExpired, PinIncorrect, PinInvalid, PinLenRange, PinLocked};
                let refused = matches!(
                    e,
                    Error::Pkcs11(
                        PinIncorrect | PinLocked | PinExpired | PinInvalid | PinLenRange,
                        _
                    )
                );
                Err((self.unavailable(e), refused))
            }
        }
    }

    /// The one slot whose token has the label.
    fn slot(&self) -> Result<Slot, KmsError> {
        let slots = self.context.get_slots_with_token().map_err(|e| self.unavailable(e))?;
        let mut found = Vec::new();
        let mut others = Vec::new();
        for slot in slots {
            // A slot that does not answer is not ours to complain about.
            let Ok(info) = self.context.get_token_info(slot) else { continue };
            if info.label() == self.label {
                found.push(slot);
            } else if info.token_initialized() {
                others.push(format!("`{}`", info.label()));
            }
        }
        match found.as_slice() {
            [one] => Ok(*one),
            [] => Err(self.unavailable(format!(
                "{} knows no token of that label; it knows {}",
                self.library.display(),
                if others.is_empty() { "none".to_owned() } else { others.join(", ") }
            ))),
            more => Err(self.unavailable(format!(
                "{} tokens have that label; give the right one a label of its own",
                more.len()
            ))),
        }
    }

    /// What a root key of that id must be. A look-alike that could be read out does not match.
    fn template(id: &str) -> Vec<Attribute> {
        vec![
            Attribute::Label(id.as_bytes().to_vec()),
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
        ]
    }

    fn find(session: &Session, id: &str) -> Result<Vec<ObjectHandle>, Error> {
        let mut template = Self::template(id);
        // Set by the token alone: made inside, and never readable since.
        template.extend([
            Attribute::Local(true),
            Attribute::AlwaysSensitive(true),
            Attribute::NeverExtractable(true),
        ]);
        let found = session.find_objects(&template)?;
        // Without a login a token shows no private object, which must not read as "destroyed".
        if found.is_empty()
            && !matches!(session.get_session_info()?.session_state(), SessionState::RwUser)
        {
            return Err(Error::Pkcs11(RvError::UserNotLoggedIn, Function::FindObjects));
        }
        Ok(found)
    }

    /// The object of a root key.
    fn object(session: &Session, id: &str) -> Result<Option<ObjectHandle>, Error> {
        Ok(Self::find(session, id)?.first().copied())
    }
}

fn gone(root: &RootKeyId) -> KmsError {
    KmsError::Gone(root.0.clone())
}

impl KeyProvider for Pkcs11Token {
    fn create(&self) -> Result<RootKeyId, KmsError> {
        let id = format!("pkcs11-{}", hex::encode(random_bytes::<16>(self.entropy.as_ref())));
        let mut template = Self::template(&id);
        template.extend([
            Attribute::ValueLen(KEY_BYTES.into()),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::Wrap(false),
            Attribute::Unwrap(false),
            Attribute::Derive(false),
            Attribute::Modifiable(false),
        ]);
        self.with_session(|s| s.generate_key(&Mechanism::AesKeyGen, &template))?;
        if self.is_destroyed(&RootKeyId(id.clone()))? {
            return Err(self.unavailable(format!(
                "it made `{id}` but does not hold it as a key that cannot be read out"
            )));
        }
        Ok(RootKeyId(id))
    }

    fn wrap(
        &self,
        root: &RootKeyId,
        key: &Key256,
        context: &WrapContext,
    ) -> Result<WrappedKey, KmsError> {
        let aad = context.aad();
        let fresh: [u8; NONCE_BYTES] = random_bytes(self.entropy.as_ref());
        let sealed = self.with_session(|s| {
            let Some(object) = Self::object(s, &root.0)? else { return Ok(None) };
            let mut nonce = fresh;
            let params = GcmParams::new(&mut nonce, &aad, TAG_BITS.into())?;
            let body = s.encrypt(&Mechanism::AesGcm(params), object, key.expose())?;
            // Read back: a token in FIPS mode puts a nonce of its own there.
            Ok(Some([nonce.as_slice(), &body].concat()))
        })?;
        let bytes = sealed.ok_or_else(|| gone(root))?;
        if bytes.len() != WRAPPED_BYTES {
            let found = bytes.len();
            return Err(self.unavailable(format!(
                "it wrapped 32 bytes into {found}, not {WRAPPED_BYTES}: its AES-GCM is another"
            )));
        }
        Ok(WrappedKey { root: root.clone(), bytes })
    }

    fn unwrap(&self, wrapped: &WrappedKey, context: &WrapContext) -> Result<Key256, KmsError> {
        let aad = context.aad();
        let blame = |e: Error| if is_forged(&e) { KmsError::Forged } else { self.unavailable(e) };
        let plain = self.with_session_or(
            |s| {
                let Some(object) = Self::object(s, &wrapped.root.0)? else { return Ok(None) };
                let split = wrapped.bytes.split_first_chunk::<NONCE_BYTES>();
                let Some((nonce, body)) = split.filter(|_| wrapped.bytes.len() == WRAPPED_BYTES)
                else {
                    return Ok(Some(Zeroizing::new(Vec::new())));
                };
                let mut nonce = *nonce;
                let params = GcmParams::new(&mut nonce, &aad, TAG_BITS.into())?;
                s.decrypt(&Mechanism::AesGcm(params), object, body).map(Zeroizing::new).map(Some)
            },
            blame,
        )?;
        let plain = plain.ok_or_else(|| gone(&wrapped.root))?;
        let key: Zeroizing<[u8; 32]> =
            Zeroizing::new(plain.as_slice().try_into().map_err(|_| KmsError::Forged)?);
        Ok(Key256::new(*key))
    }

    fn destroy(&self, root: &RootKeyId) -> Result<(), KmsError> {
        self.with_session(|s| {
            Self::find(s, &root.0)?.into_iter().try_for_each(|object| s.destroy_object(object))
        })?;
        if self.is_destroyed(root)? {
            return Ok(());
        }
        Err(self.unavailable(format!("it still holds `{}` after destroying it", root.0)))
    }

    fn is_destroyed(&self, root: &RootKeyId) -> Result<bool, KmsError> {
        self.with_session(|s| Ok(Self::object(s, &root.0)?.is_none()))
    }
}
