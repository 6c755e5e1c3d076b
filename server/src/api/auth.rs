//! From headers and certificates to a principal.
//!
//! Owns: where credentials may stand: `Authorization: Bearer T`, `Token T`, `Basic` with the
//! token as password, or a verified client certificate. Never: a credential from a query string.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
};
use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use millrace_control::Principal;

use super::{Problem, State};
use crate::listener::Peer;

/// Whoever calls, proven. A handler that asks for it refuses everybody else with 401.
#[derive(Debug)]
pub(crate) struct Caller(pub(crate) Principal);

/// With or without padding: Arrow's Go clients leave it out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The token that headers show.
pub(crate) fn token_of(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("token") {
        return Some(rest.to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let text = BASE64.decode(rest).ok()?;
        let text = String::from_utf8(text).ok()?;
        return text.split_once(':').map(|(_, password)| password.to_owned());
    }
    None
}

/// The principal of a request: its token if it shows one, else its certificate.
pub(crate) fn principal(
    state: &State,
    headers: &HeaderMap,
    peer: Option<&Peer>,
) -> Option<Principal> {
    if headers.contains_key(header::AUTHORIZATION) {
        return state.catalog.authenticate(&token_of(headers)?);
    }
    let (device, serial) = peer?.0?;
    state.catalog.device_principal(device, serial)
}

impl FromRequestParts<Arc<State>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Problem> {
        let peer = parts.extensions.get::<Peer>();
        let caller = principal(state, &parts.headers, peer).ok_or_else(Problem::unauthenticated)?;
        if let Principal::Token { tenant, .. } = &caller {
            // For the body: whose budget it is taken from.
            parts.extensions.insert(*tenant);
        }
        Ok(Self(caller))
    }
}
