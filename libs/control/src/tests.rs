//! The catalogue on a simulated disk: credentials end to end, and power cuts at every operation.

use std::{path::Path, sync::Arc, time::Duration};

use millrace_crypto::{kms::local::LocalKeyFile, ledger::KeyLedger};
use millrace_platform::{
    disk::Disk,
    entropy::Entropy,
    sim::{SimClock, SimDisk, SimEntropy, disk::Faults},
};

use crate::{policy, scope::OperatorScope, *};

const OPERATOR: OperatorScope = OperatorScope { _private: () };

fn open(disk: &SimDisk, clock: &SimClock, seed: u64) -> Catalog {
    try_open(disk, clock, seed).unwrap()
}

fn try_open(disk: &SimDisk, clock: &SimClock, seed: u64) -> Result<Catalog, CatalogError> {
    let entropy: Arc<dyn Entropy> = Arc::new(SimEntropy::seeded(seed));
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    disk.create_dir_all(Path::new("/d/keys")).unwrap();
    let provider =
        LocalKeyFile::open(Arc::clone(&disk), Arc::clone(&entropy), Path::new("/d/keys/root.key"))
            .unwrap();
    let ledger = KeyLedger::open(
        Arc::clone(&disk),
        Arc::clone(&entropy),
        Arc::new(provider),
        Path::new("/d/keys/ledger"),
    )
    .unwrap();
    Catalog::open(disk, Arc::new(clock.clone()), entropy, Arc::new(ledger), Path::new("/d/control"))
}

fn csr() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::default();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn admin(catalog: &Catalog, name: &str) -> AdminScope {
    let tenant = catalog.tenant_by_name(name).unwrap();
    policy::to_administer(&Principal::Operator, tenant.id).unwrap()
}

#[test]
fn a3_a_token_works_until_it_is_revoked_or_expires_and_is_stored_hashed() {
    let (disk, clock) = (SimDisk::new(), SimClock::at(1_000_000_000));
    let catalog = open(&disk, &clock, 1);
    catalog.create_tenant(OPERATOR, catalog.new_tenant_id(), "acme").unwrap();
    let scope = admin(&catalog, "acme");
    let scopes = "read, write".parse().unwrap();
    let (token, secret) = catalog.create_token(scope, scopes, "ci", None).unwrap();
    let text = secret.reveal().to_owned();
    assert!(matches!(
        catalog.authenticate(&text),
        Some(Principal::Token { read: true, write: true, admin: false, .. })
    ));
    for at in 0..text.len() {
        let mut wrong = text.clone().into_bytes();
        wrong[at] = if wrong[at] == b'0' { b'1' } else { b'0' };
        assert!(catalog.authenticate(&String::from_utf8(wrong).unwrap()).is_none());
        assert!(catalog.authenticate(&text[..at]).is_none());
    }
    for path in disk.paths() {
        let bytes = millrace_platform::disk::read_file(&disk, &path, 1 << 20).unwrap();
        let part = &text.as_bytes()[20..60];
        assert!(!bytes.windows(40).any(|w| w == part), "{} holds a secret", path.display());
    }
    let again = open(&disk, &clock, 2);
    assert!(again.authenticate(&text).is_some(), "tokens survive a restart");
    again.revoke_token(admin(&again, "acme"), &token.id).unwrap();
    assert!(again.authenticate(&text).is_none());
    let (_, short) =
        again.create_token(admin(&again, "acme"), scopes, "", Some(2_000_000_000)).unwrap();
    assert!(again.authenticate(short.reveal()).is_some());
    clock.advance(Duration::from_secs(1));
    assert!(again.authenticate(short.reveal()).is_none());
}

#[test]
fn a1_another_tenants_token_and_device_look_like_none() {
    let (disk, clock) = (SimDisk::new(), SimClock::at(0));
    let catalog = open(&disk, &clock, 1);
    for name in ["acme", "bolt"] {
        catalog.create_tenant(OPERATOR, catalog.new_tenant_id(), name).unwrap();
    }
    let (a, b) = (admin(&catalog, "acme"), admin(&catalog, "bolt"));
    let (token, _) = catalog.create_token(a, TokenScopes::default(), "", None).unwrap();
    let theirs = catalog.revoke_token(b, &token.id).unwrap_err();
    assert_eq!(theirs, catalog.revoke_token(b, "0000").unwrap_err());
    assert!(catalog.tokens(b).is_empty() && catalog.devices(b).is_empty());
    assert_eq!(
        catalog.create_tenant(OPERATOR, catalog.new_tenant_id(), "acme"),
        Err(CatalogError::Exists("acme".into()))
    );
    for bad in ["", "Acme", "1a", "a b", "a/b", &"a".repeat(64)] {
        assert!(matches!(
            catalog.create_tenant(OPERATOR, catalog.new_tenant_id(), bad),
            Err(CatalogError::Name(_))
        ));
    }
}

#[test]
fn e3_a_claim_works_once_in_24_hours_with_5_tries_and_a_revoked_device_is_nobody() {
    let (disk, clock) = (SimDisk::new(), SimClock::at(1_700_000_000_000_000_000));
    let catalog = open(&disk, &clock, 1);
    catalog.create_tenant(OPERATOR, catalog.new_tenant_id(), "acme").unwrap();
    let scope = admin(&catalog, "acme");
    let (code, _) = catalog.create_claim(scope, "press 7").unwrap();
    assert!(matches!(
        catalog.redeem_claim(code.reveal(), "no request", ""),
        Err(CatalogError::Certificate(CertificateError::Request(_)))
    ));
    let (device, certificate, _) = catalog.redeem_claim(code.reveal(), &csr(), "").unwrap();
    assert_eq!(device.name, "press 7");
    assert_eq!(catalog.redeem_claim(code.reveal(), &csr(), ""), Err(CatalogError::Claim));
    let der = pem_to_der(&certificate);
    let (id, serial) = device::identify(&der).unwrap();
    assert_eq!((id, serial), (device.id, device.serial));
    assert!(matches!(catalog.device_principal(id, serial), Some(Principal::Device { .. })));
    assert!(catalog.device_principal(id, serial + 1).is_none(), "an old certificate is nobody");
    catalog.revoke_device(scope, id).unwrap();
    assert!(catalog.device_principal(id, serial).is_none());

    let (code, _) = catalog.create_claim(scope, "").unwrap();
    clock.advance(Duration::from_secs(24 * 3600));
    assert_eq!(catalog.redeem_claim(code.reveal(), &csr(), ""), Err(CatalogError::Claim));
    let (code, _) = catalog.create_claim(scope, "").unwrap();
    let wrong = forge(code.reveal());
    for _ in 0..5 {
        assert_eq!(catalog.redeem_claim(&wrong, &csr(), ""), Err(CatalogError::Claim));
    }
    assert_eq!(
        catalog.redeem_claim(code.reveal(), &csr(), ""),
        Err(CatalogError::Claim),
        "out of tries"
    );
}

/// The same id with another secret and a right check.
fn forge(code: &str) -> String {
    let (body, _) = code.rsplit_once('_').unwrap();
    let (head, secret) = body.rsplit_once('_').unwrap();
    let other: String = secret.chars().map(|c| if c == '0' { '1' } else { '0' }).collect();
    let body = format!("{head}_{other}");
    format!("{body}_{:08x}", crc32c::crc32c(body.as_bytes()))
}

fn pem_to_der(pem: &str) -> Vec<u8> {
    use base64::Engine;
    let body: String = pem.lines().filter(|l| !l.starts_with('-')).collect();
    base64::engine::general_purpose::STANDARD.decode(body).unwrap()
}

#[test]
fn d1_a_change_that_was_answered_survives_a_power_cut_at_every_operation() {
    for cut in 0..40 {
        let (disk, clock) = (SimDisk::new(), SimClock::at(0));
        let catalog = open(&disk, &clock, 1);
        disk.set_faults(Faults { cut_after: Some(disk.ops() + cut), ..Faults::default() });
        let mut made = Vec::new();
        for name in ["a", "b", "c", "d"] {
            if catalog.create_tenant(OPERATOR, catalog.new_tenant_id(), name).is_ok() {
                made.push(name);
            }
        }
        disk.power_cycle(&SimEntropy::seeded(cut));
        let again = open(&disk, &clock, 3);
        for name in made {
            assert!(again.tenant_by_name(name).is_ok(), "cut {cut}: tenant {name} is lost");
        }
    }
}

#[test]
fn a_change_costs_the_same_however_many_tenants_there_are_and_all_are_found_again() {
    use millrace_platform::sim::disk::Op;
    let (disk, clock) = (SimDisk::new(), SimClock::at(0));
    let catalog = open(&disk, &clock, 1);
    let written = |disk: &SimDisk| -> usize {
        let write = |op| if let Op::Write(_, _, len) = op { len } else { 0 };
        disk.trace().into_iter().map(write).sum()
    };
    let (mut costs, mut secrets) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let before = written(&disk);
        for n in 0..200 {
            let name = format!("t{}", round * 200 + n);
            catalog.create_tenant(OPERATOR, catalog.new_tenant_id(), &name).unwrap();
            let scopes = TokenScopes { read: true, ..TokenScopes::default() };
            let (token, secret) =
                catalog.create_token(admin(&catalog, &name), scopes, "", None).unwrap();
            if n % 2 == 0 {
                catalog.revoke_token(admin(&catalog, &name), &token.id).unwrap();
            }
            secrets.push((n % 2 == 0, secret));
        }
        costs.push(written(&disk) - before);
    }
    // About 500 bytes for each of 500 changes, and a few entries each that are stored again.
    assert!(costs.iter().all(|bytes| *bytes < 500 * 4000), "{costs:?}");
    drop(catalog);
    let catalog = open(&disk, &clock, 2);
    assert_eq!(catalog.tenants(OPERATOR).len(), 600);
    for (revoked, secret) in &secrets {
        assert_eq!(catalog.authenticate(secret.reveal()).is_none(), *revoked);
    }
}

#[test]
fn d1_a_change_is_only_taken_under_its_own_number() {
    let (disk, clock) = (SimDisk::new(), SimClock::at(0));
    let catalog = open(&disk, &clock, 1);
    for name in ["a", "b"] {
        catalog.create_tenant(OPERATOR, catalog.new_tenant_id(), name).unwrap();
    }
    drop(catalog);
    let folder = disk.paths().into_iter().find(|p| p.ends_with(format!("{:020}", 2))).unwrap();
    let folder = folder.parent().unwrap().to_owned();
    let change = |n: u64| folder.join(format!("{n:020}"));
    let first = millrace_platform::disk::read_file(&disk, &change(2), 1 << 20).unwrap();
    millrace_platform::durable::replace(&disk, &change(3), &first).unwrap();
    let refused = try_open(&disk, &clock, 2).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("its change 3"), "{refused}");
}

#[test]
fn limits_are_the_tenants_own_after_a_restart_and_no_others() {
    let (disk, clock) = (SimDisk::new(), SimClock::at(1));
    let catalog = open(&disk, &clock, 1);
    for name in ["acme", "beta"] {
        catalog.create_tenant(OPERATOR, catalog.new_tenant_id(), name).unwrap();
    }
    let own = TenantLimits { rows_per_s: Some(7), ..TenantLimits::default() };
    catalog.set_limits(OPERATOR, "acme", own).unwrap();
    assert!(matches!(
        catalog.set_limits(OPERATOR, "nobody", own),
        Err(CatalogError::NotFound("tenant"))
    ));
    drop(catalog);
    let catalog = open(&disk, &clock, 2);
    let id = |name| catalog.tenant_by_name(name).unwrap().id;
    assert_eq!(catalog.limits(id("acme")), own);
    assert!(catalog.limits(id("beta")).is_default());
    assert_eq!(catalog.limited(), [(id("acme"), own)]);
}

#[test]
fn r1_terms_are_a_dated_history_that_outlives_a_restart_and_a_plan_defined_anew() {
    let (disk, clock) = (SimDisk::new(), SimClock::at(1_000));
    let catalog = open(&disk, &clock, 1);
    let made = catalog.create_tenant(OPERATOR, catalog.new_tenant_id(), "acme").unwrap();
    assert_eq!((made.plan.as_str(), made.terms.len()), (UNLIMITED, 0));
    let plan = |days| Plan {
        name: "own".into(),
        raw_days: Some(days),
        rollup_days: None,
        hot_days: Some(7),
        limits: TenantLimits { rows_per_s: Some(5), ..TenantLimits::default() },
    };
    catalog.define_plan(OPERATOR, plan(90)).unwrap();
    assert!(matches!(
        catalog.set_plan(OPERATOR, "acme", "nothing", "operator", Some(5)),
        Err(CatalogError::NotFound("plan"))
    ));
    catalog.set_plan(OPERATOR, "acme", "own", "operator", Some(5)).unwrap();
    assert_eq!(catalog.limits(made.id).rows_per_s, Some(5), "the plan's, where it has none");
    let scope = admin(&catalog, "acme");
    let table = |days| Shorter { database: "default".into(), table: "cpu".into(), days };
    assert!(catalog.shorten(scope, table(91), false, "t1", Some(6)).is_err());
    catalog.shorten(scope, table(30), false, "t1", Some(6)).unwrap();
    catalog.define_plan(OPERATOR, plan(10)).unwrap();
    // While no server runs nobody says what time it is.
    catalog.set_plan(OPERATOR, "acme", "free", "operator", None).unwrap();
    catalog.set_plan(OPERATOR, "acme", "starter", "operator", None).unwrap();
    drop(catalog);
    let catalog = open(&disk, &clock, 2);
    catalog.date_terms(700).unwrap();
    catalog.date_terms(900).unwrap();
    let tenant = catalog.tenant_by_name("acme").unwrap();
    let history: Vec<_> =
        tenant.terms.iter().map(|t| (t.from_ns, t.raw_days, t.tables.len())).collect();
    assert_eq!(
        history,
        [(Some(5), Some(90), 0), (Some(6), Some(90), 1), (Some(700), Some(731), 1)]
    );
    assert_eq!(catalog.retained(), [made.id]);
    assert_eq!(catalog.plans().len(), 5);
}

#[test]
fn r1_a_hold_has_a_reason_and_an_author_and_stays_listed_after_its_release() {
    let (disk, clock) = (SimDisk::new(), SimClock::at(1_000));
    let catalog = open(&disk, &clock, 1);
    for name in ["acme", "other"] {
        catalog.create_tenant(OPERATOR, catalog.new_tenant_id(), name).unwrap();
    }
    let (scope, other) = (admin(&catalog, "acme"), admin(&catalog, "other"));
    assert!(catalog.add_hold(scope, None, "  ", "operator", true).is_err());
    let all = catalog.add_hold(scope, None, "case 7", "operator", true).unwrap();
    let table = Some(("default".to_owned(), "cpu".to_owned()));
    let own = catalog.add_hold(scope, table, "audit", "t1", false).unwrap();
    assert!(matches!(
        catalog.release_hold(scope, &all.id, "t1", false),
        Err(CatalogError::OperatorHold)
    ));
    assert!(catalog.release_hold(other, &own.id, "operator", true).is_err(), "not its own");
    catalog.release_hold(scope, &own.id, "t1", false).unwrap();
    assert!(catalog.release_hold(scope, &own.id, "t1", false).is_err(), "once");
    drop(catalog);
    let catalog = open(&disk, &clock, 2);
    let holds = catalog.holds(scope.tenant());
    assert_eq!(holds.iter().filter(|h| h.active()).count(), 1);
    assert_eq!(
        holds.iter().filter_map(|h| h.released.clone()).collect::<Vec<_>>(),
        [(1_000, "t1".to_owned())]
    );
    assert_eq!(catalog.retained(), [scope.tenant()]);
    assert!(catalog.holds(other.tenant()).is_empty());
}

#[test]
fn e3_a_renewed_certificate_and_the_one_before_count_until_the_new_one_is_shown() {
    let (disk, clock) = (SimDisk::new(), SimClock::at(1_700_000_000_000_000_000));
    let catalog = open(&disk, &clock, 1);
    catalog.create_tenant(OPERATOR, catalog.new_tenant_id(), "acme").unwrap();
    let scope = admin(&catalog, "acme");
    let (code, _) = catalog.create_claim(scope, "press 7").unwrap();
    let (device, _, _) = catalog.redeem_claim(code.reveal(), &csr(), "").unwrap();
    let (id, first) = (device.id, device.serial);
    let renew = |serial| {
        let (_, certificate, _) = catalog.renew_device(id, serial, &csr()).unwrap();
        device::identify(&pem_to_der(&certificate)).unwrap().1
    };
    let counts = |serial| catalog.device_principal(id, serial).is_some();
    let lost = renew(first);
    assert!(counts(first) && counts(lost));
    // The answer was lost: the device asks again with what it has.
    let second = renew(first);
    assert!(counts(first) && counts(second) && !counts(lost));
    let third = renew(second);
    assert!(!counts(first) && counts(second) && counts(third));
    assert!(catalog.renew_device(id, first, &csr()).is_err());
    // Both are stored.
    let again = open(&disk, &clock, 2);
    assert!(again.device_principal(id, second).is_some());
    assert!(again.device_principal(id, third).is_some());
    catalog.revoke_device(scope, id).unwrap();
    assert!(!counts(second) && !counts(third));
    assert!(catalog.renew_device(id, third, &csr()).is_err());
}

#[test]
fn e3_a_new_box_keeps_the_logical_device_and_the_old_key_is_dead_at_once() {
    let (disk, clock) = (SimDisk::new(), SimClock::at(1_700_000_000_000_000_000));
    let catalog = open(&disk, &clock, 1);
    for name in ["acme", "other"] {
        catalog.create_tenant(OPERATOR, catalog.new_tenant_id(), name).unwrap();
    }
    let scope = admin(&catalog, "acme");
    let (code, _) = catalog.create_claim(scope, "press 7").unwrap();
    let (old, _, _) = catalog.redeem_claim(code.reveal(), &csr(), "").unwrap();
    assert!(catalog.create_replacement(admin(&catalog, "other"), old.id).is_err());
    let (code, _) = catalog.create_replacement(scope, old.id).unwrap();
    assert!(catalog.device_principal(old.id, old.serial).is_some(), "until the code is used");
    let (new, certificate, _) = catalog.redeem_claim(code.reveal(), &csr(), "box").unwrap();
    assert_eq!((new.id, new.name.as_str()), (old.id, "press 7"));
    let (_, serial) = device::identify(&pem_to_der(&certificate)).unwrap();
    assert!(catalog.device_principal(old.id, old.serial).is_none());
    assert!(catalog.device_principal(old.id, serial).is_some());
    assert_eq!(catalog.devices(scope).len(), 1);
    assert_eq!(catalog.redeem_claim(code.reveal(), &csr(), ""), Err(CatalogError::Claim));
}
