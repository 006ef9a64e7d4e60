//! `petrel status`: is everything well, and if not, where to look.

use std::fmt::Write as _;

use crate::client::read_as;
use crate::commands::{Context, server};
use crate::error::Error;
use crate::model::Cluster;
use crate::output::or_dash;

/// What concerns everything comes first in the list; what concerns one segment is like the next.
const WAITS_SHOWN: usize = 4;

pub fn run(context: &Context) -> Result<(), Error> {
    const DOING: &str = "read the cluster's status";
    const ROUTE: &str = "/v1/cluster";
    let answer = context.client.get(DOING, ROUTE)?;
    let cluster: Cluster = read_as(DOING, ROUTE, &answer)?;
    context.output.show(&answer, || render(&cluster))
}

fn render(cluster: &Cluster) -> String {
    let Cluster {
        cluster_id,
        version,
        smt_version,
        leader,
        consensus,
        health,
        servers,
        volumes,
        segments,
        migrations_active,
        waiting_for,
    } = cluster;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        writeln!(text, "{name:<12}{value}").expect("writing to a String cannot fail");
    };
    line("cluster", format!("{cluster_id} (version {version})"));
    line("health", health.clone());
    let leader = leader
        .as_ref()
        .map_or_else(|| "no leader".to_owned(), |leader| format!("leader is server {leader}"));
    line(
        "consensus",
        format!("{consensus}, {leader}, map version {}", or_dash(smt_version.as_ref())),
    );
    line("volumes", or_dash(volumes.as_ref()));
    line(
        "segments",
        format!(
            "{} ({} healthy, {} degraded, {} unavailable)",
            or_dash(segments.total.as_ref()),
            or_dash(segments.healthy.as_ref()),
            or_dash(segments.degraded.as_ref()),
            or_dash(segments.unavailable.as_ref()),
        ),
    );
    if let Some(forced) = segments.forced.filter(|forced| *forced > 0) {
        line("data loss", format!("accepted for {forced} segments: an older copy was forced"));
    }
    line("migrations", format!("{} under way", or_dash(migrations_active.as_ref())));
    let waits = waiting_for.as_deref().unwrap_or_default();
    for wait in waits.iter().take(WAITS_SHOWN) {
        line("waits", wait.clone());
    }
    if let Some(more) = waits.len().checked_sub(WAITS_SHOWN).filter(|more| *more > 0) {
        line("waits", format!("and for {more} more (--json shows all)"));
    }
    text.push('\n');
    text.push_str(&server::render(servers));
    text
}
