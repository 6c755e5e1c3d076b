//! Components in dependency order, each in a short function, and the list that calls them.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use millrace_control::{Catalog, CatalogError};
use millrace_crypto::{
    key::TenantKeySource,
    ledger::{KeyLedger, LedgerError},
};
use millrace_platform::{
    budget::MemoryBudget,
    clock::{Clock, SystemClock},
    disk::{Disk, DiskLock, RealDisk},
    durable,
    entropy::{Entropy, OsEntropy, random_u64},
    net::{Listener, TcpAcceptor},
};
use millrace_query::{QueryEngine, QueryLimits};
use millrace_storage::{Engine, EngineConfig, EngineLimits, OpenError, retention::Book};
use tokio::sync::watch;

use crate::{
    api,
    ingest::{Admission, Budgets},
    listener, pgwire,
    root_key::{self, RootKey, RootKeyError},
    settings::Settings,
    tls,
};

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process has the folder.
    #[error("{0} is in use by a running server; stop it, or use --url to talk to it")]
    Locked(String),
    /// A file or folder.
    #[error("{what}: {source}")]
    Io {
        /// Which.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file without which others would be misread.
    #[error(
        "{missing} is missing, although {there} is there; this is not a first start: restore {missing} from a backup (nothing was changed)"
    )]
    Missing {
        /// What is not there.
        missing: &'static str,
        /// What tells that it was.
        there: &'static str,
    },
    /// The root key.
    #[error(transparent)]
    RootKey(#[from] RootKeyError),
    /// The key ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The catalogue.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Storage.
    #[error(transparent)]
    Storage(#[from] OpenError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// Metrics.
    #[error("metrics cannot be set up: {0}")]
    Metrics(String),
}

/// The tenants, tokens and devices, below the data directory.
const CATALOG: &str = "control/catalog";
/// The wrapped keys.
const LEDGER: &str = "keys/ledger.json";
/// Says that storage was made, so that a folder without it is not taken for a new one.
pub(crate) const STORED: &str = "control/storage";
/// The manifest's records.
pub(crate) const MANIFEST: &str = "shard/0/m";

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> StartError {
    let what = what.into();
    move |source| StartError::Io { what, source }
}

/// Keys and catalogue of a data directory: all that administration needs.
#[derive(Debug)]
pub struct Control {
    pub disk: Arc<dyn Disk>,
    pub clock: Arc<dyn Clock>,
    pub entropy: Arc<dyn Entropy>,
    pub ledger: Arc<KeyLedger>,
    pub catalog: Arc<Catalog>,
    _lock: DiskLock,
}

/// Opens keys and catalogue and holds the directory's lock. `root` is where the options say that
/// the root key is; without one it is where it was at the first start, a file by default.
pub fn control(dir: &Path, root: Option<RootKey>) -> Result<Control, StartError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
    let keys_dir = dir.join("keys");
    disk.create_dir_all(&keys_dir).map_err(io(dir.display().to_string()))?;
    let lock = disk.lock_exclusive(&dir.join("lock")).map_err(|e| match e.kind() {
        std::io::ErrorKind::WouldBlock => StartError::Locked(dir.display().to_string()),
        _ => StartError::Io { what: dir.display().to_string(), source: e },
    })?;
    let there = |path: &str| disk.exists(&dir.join(path)).map_err(io(path.to_owned()));
    // The ledger is made before the catalogue, so this is no first start that was cut off.
    if there(CATALOG)? && !there(LEDGER)? {
        return Err(StartError::Missing { missing: LEDGER, there: CATALOG });
    }
    let provider = root_key::open(&disk, &entropy, &keys_dir, root)?;
    let ledger = Arc::new(KeyLedger::open(
        Arc::clone(&disk),
        Arc::clone(&entropy),
        provider,
        &keys_dir.join("ledger.json"),
    )?);
    // A tenant's keys are made only by a catalogue that is open.
    if ledger.has_tenants() && !there(CATALOG)? {
        return Err(StartError::Missing { missing: CATALOG, there: LEDGER });
    }
    let keys: Arc<dyn TenantKeySource> = Arc::clone(&ledger) as _;
    let catalog = Arc::new(Catalog::open(
        Arc::clone(&disk),
        Arc::clone(&clock),
        Arc::clone(&entropy),
        keys,
        &dir.join("control"),
    )?);
    ensure_operator_token(disk.as_ref(), &catalog, dir)?;
    Ok(Control { disk, clock, entropy, ledger, catalog, _lock: lock })
}

/// Writes an operator token (mode 0600) at the first start.
fn ensure_operator_token(disk: &dyn Disk, catalog: &Catalog, dir: &Path) -> Result<(), StartError> {
    let path = dir.join("operator.token");
    if disk.exists(&path).map_err(io(path.display().to_string()))? {
        return Ok(());
    }
    let (_, secret) = catalog.create_operator_token("first start")?;
    durable::replace(disk, &path, format!("{}\n", secret.reveal()).as_bytes())
        .map_err(io(path.display().to_string()))
}

fn metrics() -> Result<PrometheusHandle, StartError> {
    PrometheusBuilder::new().install_recorder().map_err(|e| StartError::Metrics(e.to_string()))
}

/// What follows from the memory that the settings give.
fn limits(settings: &Settings) -> EngineLimits {
    let limits = EngineLimits {
        series_per_day: settings.tenant_limits.series_per_day,
        // Several deletions of a day become one rewriting.
        erase_after: (settings.erase_within / 4).min(Duration::from_secs(24 * 3600)),
        erase_within: settings.erase_within,
        retention: Arc::new(Book::with_fuse(settings.fuse)),
        ..EngineLimits::within(MemoryBudget::new(settings.memory_bytes))
    };
    let Some(memtable) = settings.memtable_bytes else { return limits };
    EngineLimits { flush_bytes: memtable / 3, memtable_bytes_max: memtable, ..limits }
}

async fn storage(control: &Control, settings: &Settings) -> Result<Arc<Engine>, StartError> {
    let config = EngineConfig {
        disk: Arc::clone(&control.disk),
        clock: Arc::clone(&control.clock),
        entropy: Arc::clone(&control.entropy),
        dir: settings.data_dir.clone(),
        keys: Arc::clone(&control.ledger) as _,
        limits: limits(settings),
    };
    let disk = control.disk.as_ref();
    let marker = settings.data_dir.join(STORED);
    let made = disk.exists(&marker).map_err(io(STORED))?;
    if made {
        let records = disk.list(&settings.data_dir.join(MANIFEST));
        if records.map_or(true, |all| all.is_empty()) {
            return Err(StartError::Missing { missing: MANIFEST, there: STORED });
        }
    }
    let engine = Engine::open(config).await?;
    // What was set while no server ran counts from now on.
    control.catalog.date_terms(engine.clock_state().now_ns)?;
    for tenant in control.catalog.retained() {
        crate::retention::tell(&control.catalog, &engine, tenant);
    }
    for (tenant, own) in control.catalog.limited() {
        engine.limit_new_series(tenant, own.series_per_day);
    }
    if !made {
        durable::replace(disk, &marker, b"").map_err(io(STORED))?;
    }
    let replay = engine.replay;
    tracing::info!(
        records = replay.applied,
        rows = replay.rows,
        duplicates = replay.duplicates,
        flushes = replay.flushes,
        "the log was replayed"
    );
    Ok(Arc::new(engine))
}

fn query(
    control: &Control,
    engine: &Arc<Engine>,
    settings: &Settings,
) -> Result<Arc<QueryEngine>, StartError> {
    let limits = QueryLimits {
        memory_bytes: settings.query_bytes,
        timeout: Duration::from_secs(settings.query_timeout_s),
        ..QueryLimits::default()
    };
    let query = QueryEngine::new(Arc::clone(engine), Arc::clone(&control.clock), limits)
        .map_err(io("query threads"))?;
    Ok(Arc::new(query))
}

/// Where the server listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// HTTP and Flight.
    pub https: SocketAddr,
    /// PostgreSQL's protocol, if it is offered.
    pub pg: Option<SocketAddr>,
}

async fn bind(address: SocketAddr) -> Result<(TcpAcceptor, SocketAddr), StartError> {
    let acceptor =
        TcpAcceptor::bind(address).await.map_err(io(format!("cannot listen on {address}")))?;
    let bound = acceptor.local_addr().map_err(io("the listener's address"))?;
    Ok((acceptor, bound))
}

/// Runs the server until a signal; `ready` is told the addresses once it listens.
pub async fn run(settings: Settings, ready: impl FnOnce(Addresses)) -> Result<(), StartError> {
    let mut stop_signal = Box::pin(stop_signal().map_err(io("signals"))?);
    let control = control(&settings.data_dir, settings.root_key.clone())?;
    let metrics = metrics()?;
    let tls_dir = settings.data_dir.join("tls");
    let (certificate, key) = match &settings.tls {
        Some(files) => files.clone(),
        None => {
            tls::ensure_dev_certificate(control.disk.as_ref(), control.clock.as_ref(), &tls_dir)?;
            (tls_dir.join("server.pem"), tls_dir.join("server.key"))
        }
    };
    let tls = tls::server_config(
        control.disk.as_ref(),
        &certificate,
        &key,
        control.catalog.device_ca_pem(),
    )?;
    // A replay may be long; given up, it left everything as it was.
    let engine = tokio::select! {
        engine = storage(&control, &settings) => engine?,
        () = &mut stop_signal => return Ok(()),
    };
    let query = query(&control, &engine, &settings)?;
    let (stop, stopped) = watch::channel(false);
    let state = Arc::new(api::State {
        clock: Arc::clone(&control.clock),
        catalog: Arc::clone(&control.catalog),
        ledger: Arc::clone(&control.ledger),
        engine: Arc::clone(&engine),
        query,
        metrics,
        admission: Admission::new(Arc::clone(engine.memory())),
        budgets: Budgets::new(
            Arc::clone(&control.clock),
            Arc::clone(&control.catalog),
            settings.tenant_limits,
        ),
        prepared: api::Prepared::new(Arc::clone(&control.clock), Arc::clone(&control.entropy)),
        subscriptions: api::Subscriptions::default(),
        stopping: stopped.clone(),
        seed: random_u64(control.entropy.as_ref()),
    });
    let (acceptor, https) = bind(settings.listen).await?;
    let pg = match settings.pg_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    ready(Addresses { https, pg: pg.as_ref().map(|(_, address)| *address) });
    tokio::spawn(async move {
        stop_signal.await;
        tracing::info!("stopping: open requests may end, then rows are flushed");
        if stop.send(true).is_err() {
            tracing::debug!("the listener had stopped already");
        }
    });
    if let Some((acceptor, _)) = pg {
        let (tls, state) = (pgwire::tls(&tls), Arc::clone(&state));
        let entropy = Arc::clone(&control.entropy);
        tokio::spawn(pgwire::serve(Box::new(acceptor), tls, state, entropy, stopped.clone()));
    }
    let router = api::router(Arc::clone(&state));
    listener::serve(Box::new(acceptor), tls, router, Arc::clone(&control.clock), stopped).await;
    drop(state);
    let closed = tokio::task::spawn_blocking(move || engine.close()).await;
    if closed.is_err() {
        tracing::error!("the engine did not close in order; the next start replays the log");
    }
    Ok(())
}

/// Ready at Ctrl-C or SIGTERM. Both are ours from this call on, not only once it is polled: a stop
/// that comes right after the start is as orderly as any other.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
