//! A grant as the wire shows it: its record, with what its layers report right now.

use std::collections::BTreeSet;

use postern_core::plan::reason_without_cloud_text;
use postern_core::{Grant, TargetId, Window};
use postern_proto::v1;

use crate::api::convert::grant_to_wire;
use crate::app::targets::CLOUD_TEXT_WITHHELD;
use crate::app::{App, Caller};
use crate::cluster::peer_status::PeerStatus;

/// Returns a grant with what its layers report right now, as far as the caller may read it.
pub(super) async fn show(app: &App, caller: &Caller, grant: &Grant) -> v1::Grant {
    show_with(app, caller, grant, &peers(app, [grant]).await)
}

/// Returns a grant as [`show`] does, with the other brokers' reports as they were read.
pub(super) fn show_with(app: &App, caller: &Caller, grant: &Grant, peers: &PeerStatus) -> v1::Grant {
    for_caller(caller, with_layers(app, grant, peers))
}

/// Returns several grants as [`show`] does. The other brokers' reports are read once for all.
pub(super) async fn show_all(app: &App, caller: &Caller, grants: &[Grant]) -> Vec<v1::Grant> {
    let peers = peers(app, grants).await;
    grants.iter().map(|grant| show_with(app, caller, grant, &peers)).collect()
}

/// Replaces the clouds' own texts for a requester: they name accounts, rules and permissions, and are for operators (I7).
fn for_caller(caller: &Caller, mut grant: v1::Grant) -> v1::Grant {
    if caller.reads_cloud_errors() {
        return grant;
    }
    grant.reason = reason_without_cloud_text(&grant.reason);
    let layers = grant.windows.iter_mut().flat_map(|window| &mut window.layers);
    for layer in layers.filter(|layer| layer.layer() == v1::Layer::Cloud && !layer.detail.is_empty()) {
        layer.detail = CLOUD_TEXT_WITHHELD.to_owned();
    }
    grant
}

/// Reads what the other brokers report of the targets of these grants. If the store fails, the answer shows none of it.
pub(super) async fn peers(app: &App, grants: impl IntoIterator<Item = &Grant>) -> PeerStatus {
    let open = grants.into_iter().filter(|grant| !grant.state.is_final());
    let targets: BTreeSet<&TargetId> = open.flat_map(Grant::targets).collect();
    app.peer_status(targets).await.unwrap_or_default()
}

fn with_layers(app: &App, grant: &Grant, peers: &PeerStatus) -> v1::Grant {
    let observe = |window: &Window, layer| app.observer.observe(grant, window, layer, peers);
    let is_over = grant.state.is_final();
    let endpoint = |window: &Window| {
        if is_over { None } else { app.observer.endpoint(grant, window, peers) }
    };
    grant_to_wire(grant, observe, endpoint)
}
