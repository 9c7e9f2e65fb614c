//! TEMPORARY stand-in by the lead; the author of dlq-manager replaces all of it.
use relay_links::Links;
use utoipa_axum::router::OpenApiRouter;
#[derive(Clone, Debug, clap::Args)]
pub struct Config { #[arg(skip = std::net::SocketAddr::from(([127,0,0,1],8743)))] pub listen: std::net::SocketAddr }
pub struct DlqManager;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct StartError;
impl DlqManager {
    pub async fn start(_c: Config, _l: Links, _p: String) -> Result<Self, StartError> { Ok(Self) }
    pub fn router(&self) -> OpenApiRouter { OpenApiRouter::new() }
    pub async fn run(self, stop: tokio_util::sync::CancellationToken) { stop.cancelled().await }
}
#[derive(clap::Parser, Debug)]
pub struct Cli {}
pub fn main_with(_: Cli) -> anyhow::Result<()> { Ok(()) }
