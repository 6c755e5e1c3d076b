//! One query's session: one tenant's catalogue, its own memory, no files, no network, no spill.
//!
//! Owns: what SQL can name. Never: shares state between queries or tenants.

use std::sync::Arc;

use datafusion::{
    catalog::{CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider},
    error::Result,
    execution::{
        SessionStateBuilder,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::{FairSpillPool, TrackConsumersPool},
        object_store::DefaultObjectStoreRegistry,
        runtime_env::RuntimeEnvBuilder,
    },
    prelude::{SessionConfig, SessionContext},
};
use millrace_storage::TenantSnapshot;

use crate::{engine::QueryLimits, provider::SnapshotTable};

/// Functions that can make a value of any size from a few bytes of SQL, or that tell about the
/// host. They are not registered, so that a query that names them is an unknown function.
const LEFT_OUT: &[&str] = &[
    "repeat",
    "lpad",
    "rpad",
    "range",
    "generate_series",
    "gen_series",
    "array_repeat",
    "list_repeat",
    "array_resize",
    "list_resize",
    "array_pad",
    "list_pad",
    "arrow_metadata",
    "getdate",
];

/// Aggregates that collect unbounded values are bounded by the memory pool and stay.
/// The name of the one catalogue.
const CATALOG: &str = "millrace";

/// A context that sees `snapshot` and nothing else.
pub(crate) fn open(
    snapshot: &TenantSnapshot,
    database: &str,
    limits: &QueryLimits,
) -> Result<SessionContext> {
    let config = SessionConfig::new()
        .with_information_schema(true)
        .with_default_catalog_and_schema(CATALOG, database)
        .with_create_default_catalog_and_schema(false)
        .with_target_partitions(limits.partitions)
        .with_batch_size(8192);
    let pool = TrackConsumersPool::new(
        FairSpillPool::new(limits.memory_bytes),
        std::num::NonZeroUsize::MIN,
    );
    let registry = DefaultObjectStoreRegistry::new();
    use datafusion::execution::object_store::ObjectStoreRegistry;
    // The default registry knows the local file system; nothing here may.
    if let Ok(url) = url_of_files() {
        drop(registry.deregister_store(&url));
    }
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_object_store_registry(Arc::new(registry))
        .with_disk_manager_builder(
            DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled),
        )
        .build_arc()?;
    let state = SessionStateBuilder::new_with_default_features()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_table_factories(Default::default())
        .build();
    let context = SessionContext::new_with_state(state);
    for name in LEFT_OUT {
        context.deregister_udf(name);
        context.deregister_udtf(name);
    }
    let catalog = MemoryCatalogProvider::new();
    for (name, tables) in &snapshot.databases {
        let schema = MemorySchemaProvider::new();
        for (table, snapshot) in tables {
            let provider = SnapshotTable::new(Arc::clone(snapshot));
            schema.register_table(table.clone(), Arc::new(provider))?;
        }
        catalog.register_schema(name, Arc::new(schema))?;
    }
    if !snapshot.databases.contains_key(database) {
        // A database that was never written to is empty, not an error.
        catalog.register_schema(database, Arc::new(MemorySchemaProvider::new()))?;
    }
    context.register_catalog(CATALOG, Arc::new(catalog));
    Ok(context)
}

fn url_of_files() -> std::result::Result<url::Url, url::ParseError> {
    url::Url::parse("file://")
}
