//! `information_schema` as a tenant may see it: its databases, tables and columns.
//!
//! Owns: which of DataFusion's listings are shown. Never: shows settings of the process
//! (`df_settings`) or the inside of DataFusion (`routines`, `parameters`).

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    catalog::{
        CatalogProviderList, SchemaProvider, TableProvider, information_schema::*, view::ViewTable,
    },
    datasource::provider_as_source,
    error::Result,
    logical_expr::{LogicalPlanBuilder, col, lit},
};

/// What is shown.
const SHOWN: &[&str] = &["columns", "schemata", "tables", "views"];

/// See the module head.
#[derive(Debug)]
pub(crate) struct Listing(InformationSchemaProvider);

impl Listing {
    pub(crate) fn new(catalogs: Arc<dyn CatalogProviderList>) -> Self {
        Self(InformationSchemaProvider::new(catalogs))
    }
}

#[async_trait]
impl SchemaProvider for Listing {
    fn table_names(&self) -> Vec<String> {
        SHOWN.iter().map(|n| (*n).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if !self.table_exist(name) {
            return Ok(None);
        }
        let Some(all) = self.0.table(name).await? else { return Ok(None) };
        if name != "tables" {
            return Ok(Some(all));
        }
        // The listing of tables also lists the listings, and those that are not shown too.
        let hidden = col("table_schema")
            .eq(lit(INFORMATION_SCHEMA))
            .and(col("table_name").in_list(SHOWN.iter().map(|n| lit(*n)).collect(), true));
        let plan = LogicalPlanBuilder::scan(name, provider_as_source(all), None)?
            .filter(datafusion::logical_expr::not(hidden))?
            .build()?;
        Ok(Some(Arc::new(ViewTable::new(plan, None))))
    }

    fn table_exist(&self, name: &str) -> bool {
        SHOWN.contains(&name)
    }
}
