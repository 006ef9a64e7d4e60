//! HTTP: the API of DESIGN 4 on every server, the metrics and the dashboard.
//!
//! Invariant: any server answers any request: reads come from its own copy of the map, changes go
//! to whoever leads it. Errors are problem details (RFC 9457). Nothing from a socket panics.

mod attach;
mod changes;
mod metrics;
mod objects;
mod problem;
mod reads;
mod recovery;
mod scrub;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::response::Html;
use axum::routing::{delete, get, post};

use super::Control;
pub use metrics::ReportCounters;

/// The routes, all of them.
pub fn routes(control: Control) -> Router {
    // Of the leader alone.
    let attachments = Router::new()
        .route("/v1/volumes/{name}/attach", post(attach::attach))
        .route("/v1/volumes/{name}/detach", post(attach::detach))
        .route("/v1/volumes/{name}/keep-alive", post(attach::keep_alive))
        .route_layer(from_fn_with_state(control.clone(), attach::through_leader));
    Router::new()
        .merge(attachments)
        .route("/", get(|| async { Html(include_str!("dashboard.html")) }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics::metrics))
        .route("/internal/waits", get(reads::own_waits))
        .route("/internal/word", get(reads::word))
        .route("/v1/cluster", get(reads::cluster))
        .route("/v1/orchestrator", get(reads::orchestrator))
        .route("/v1/servers", get(reads::servers).post(recovery::join))
        .route("/v1/servers/{id}/{verb}", post(changes::server))
        .route("/v1/volumes", get(reads::volumes).post(changes::create_volume))
        .route("/v1/volumes/{name}", get(reads::volume).delete(changes::delete_volume))
        .route("/v1/segments", get(reads::segments))
        .route("/v1/segments/{volume}/{index}/move", post(changes::move_segment))
        .route("/v1/segments/{volume}/{index}/candidates", get(recovery::candidates))
        .route("/v1/segments/{volume}/{index}/force-primary", post(recovery::force_primary))
        .route("/v1/replicas", get(recovery::replicas))
        .route("/v1/migrations", get(reads::migrations))
        .route("/v1/migrations/{id}", delete(changes::cancel_migration).get(reads::migration))
        .route("/v1/map/{volume}", get(reads::map))
        .route("/v1/score", get(reads::score))
        .route("/v1/scores", get(reads::scores))
        .route("/v1/score/history", get(reads::history))
        .route("/v1/scrub", get(scrub::show).post(scrub::start).delete(scrub::stop))
        .route(
            "/v1/faults",
            post(changes::set_faults).delete(changes::clear_faults).get(reads::faults),
        )
        .fallback(|| async { problem::Problem::not_found("there is nothing at this address") })
        .with_state(control)
}
