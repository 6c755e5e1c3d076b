//! One query's session: one tenant's catalogue, its own memory, no files, no network, no spill.
//!
//! Owns: what SQL can name. Never: shares state between queries or tenants.

use std::sync::Arc;

use crate::{
    engine::QueryLimits,
    functions::{self, Operators, Stop},
    interrupt::Interruptible,
    listing::Listing,
    operator,
    pool::{QueryMemory, SharedMemory},
    provider::SnapshotTable,
    system::{SYSTEM, Sources, System},
};
use datafusion::{
    catalog::{
        CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList,
        MemorySchemaProvider, SchemaProvider, information_schema::INFORMATION_SCHEMA,
    },
    common::tree_node::{TreeNode, TreeNodeRecursion},
    error::Result,
    execution::{
        FunctionRegistry, SessionStateBuilder, SessionStateDefaults,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry},
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    logical_expr::{Expr, LogicalPlan},
    prelude::{SessionConfig, SessionContext},
    scalar::ScalarValue,
};
use millrace_storage::TenantSnapshot;

/// The name of the one catalogue.
pub(crate) const CATALOG: &str = "millrace";

/// Rows of a batch.
const BATCH_ROWS: usize = 8192;
/// Bytes that all constants of a plan may take when they are repeated for each row of a batch.
const CONSTANTS_BYTES: usize = 64 << 20;

/// Rows of a batch for this plan. An operator may repeat a constant for each row, so that a text
/// of 1 MiB would become 8 GiB; the longer the constants, the fewer rows go together.
pub(crate) fn batch_rows(plan: &LogicalPlan) -> Result<usize> {
    let mut bytes = 0usize;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| match expr {
                Expr::Literal(value, _) => {
                    bytes += value.size().saturating_sub(size_of::<ScalarValue>());
                    Ok(TreeNodeRecursion::Continue)
                }
                // A list is looked up in and not repeated.
                Expr::InList(_) => Ok(TreeNodeRecursion::Jump),
                _ => Ok(TreeNodeRecursion::Continue),
            })
        })
    })?;
    Ok((CONSTANTS_BYTES / bytes.max(1)).clamp(16, BATCH_ROWS))
}

/// What a query runs within.
pub(crate) struct Bounds<'a> {
    pub(crate) limits: &'a QueryLimits,
    pub(crate) memory: &'a SharedMemory,
    pub(crate) stop: &'a Stop,
}

/// A context that sees these sources, which are one tenant's, and nothing else.
pub(crate) fn open(
    sources: &Sources,
    database: &str,
    bounds: &Bounds<'_>,
) -> Result<SessionContext> {
    let catalogs: Arc<dyn CatalogProviderList> = Arc::new(MemoryCatalogProviderList::new());
    let catalog = catalog(&sources.snapshot, database)?;
    catalog.register_schema(SYSTEM, Arc::new(System(sources.clone())))?;
    let listing = Arc::new(Listing::new(Arc::clone(&catalogs)));
    catalog.register_schema(INFORMATION_SCHEMA, listing)?;
    catalogs.register_catalog(CATALOG.to_owned(), Arc::new(catalog));
    // DataFusion's own information schema also shows its settings; ours is registered above.
    let config = SessionConfig::new()
        .with_information_schema(false)
        .with_default_catalog_and_schema(CATALOG, database)
        .with_create_default_catalog_and_schema(false)
        .with_target_partitions(bounds.limits.partitions)
        .with_batch_size(BATCH_ROWS);
    let mut state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime(bounds)?)
        .with_catalog_list(catalogs)
        .with_expr_planners(SessionStateDefaults::default_expr_planners())
        .with_scalar_functions(functions::scalars(bounds.stop))
        .with_aggregate_functions(functions::aggregates(bounds.stop))
        .with_window_functions(SessionStateDefaults::default_window_functions())
        .with_table_function_list(functions::tables())
        .with_optimizer_rules(operator::rules())
        .with_query_planner(Arc::new(operator::Planner(bounds.stop.clone())))
        .with_relation_planners(vec![Arc::new(operator::AsofSyntax)])
        .with_physical_optimizer_rule(Arc::new(Interruptible(bounds.stop.clone())))
        .build();
    state.register_function_rewrite(Arc::new(Operators::new(bounds.stop)))?;
    Ok(SessionContext::new_with_state(state))
}

fn runtime(bounds: &Bounds<'_>) -> Result<Arc<RuntimeEnv>> {
    let pool = QueryMemory::new(bounds.limits.memory_bytes, bounds.memory.clone());
    let registry = DefaultObjectStoreRegistry::new();
    // The default registry knows the local file system; nothing here may.
    if let Ok(url) = url::Url::parse("file://") {
        drop(registry.deregister_store(&url));
    }
    RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_object_store_registry(Arc::new(registry))
        .with_disk_manager_builder(
            DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled),
        )
        .build_arc()
}

fn catalog(snapshot: &TenantSnapshot, database: &str) -> Result<MemoryCatalogProvider> {
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
    Ok(catalog)
}
