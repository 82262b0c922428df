//! Assessments, lockdowns and releases for people.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::super::json::{AssessmentJson, AssessmentReportJson, LockdownResultJson, LockdownsJson};
use super::super::{Ids, printable};
use super::{named, or_dash, table};

/// Draws the verdicts: a line for each reason, and one for each account, Region or subscription that could not be
/// read.
pub(crate) fn assessment_report(report: &AssessmentReportJson, _: Timestamp, ids: Ids) -> String {
    let rows = report.assessments.iter().flat_map(|one| {
        let reasons = if one.reasons.is_empty() { vec![String::new()] } else { one.reasons.clone() };
        reasons.into_iter().map(move |reason| row(one, &reason, ids))
    });
    let judged = table(["TARGET", "NAME", "VERDICT", "LOCKED", "REASON"], rows);
    let unread = report
        .unread
        .iter()
        .map(|one| format!("\n{}", line(&format!("could not read {}: {}", one.place, one.reason))));
    let unread: String = unread.collect();
    if unread.is_empty() { judged } else { format!("{judged}\n{unread}") }
}

fn row(one: &AssessmentJson, reason: &str, ids: Ids) -> [String; 5] {
    [
        named(&one.target, ids),
        or_dash(&one.name),
        one.verdict.replace('_', " "),
        if one.locked { "yes" } else { "no" }.to_owned(),
        or_dash(reason),
    ]
}

/// Draws the result for each target, with a line for each change.
pub(crate) fn lockdowns(lockdowns: &LockdownsJson, participle: &str) -> String {
    let shown = |result| shown(result, participle, lockdowns.dry_run);
    lockdowns.results.iter().map(shown).collect::<Vec<_>>().join("\n")
}

fn shown(result: &LockdownResultJson, participle: &str, dry_run: bool) -> String {
    let unmet: Vec<_> = result.concerns.iter().filter(|concern| concern.holds_up).collect();
    let standing = match (&result.error, result.done) {
        (Some(error), true) => format!("{participle}, but with an error: {}", error.message),
        (Some(error), false) => format!("not {participle}: {}", error.message),
        (None, _) if result.changes.is_empty() && unmet.is_empty() => format!("already {participle}"),
        (None, true) => participle.to_owned(),
        (None, false) if dry_run && unmet.is_empty() => format!("would be {participle}"),
        (None, false) if dry_run => format!("would be {participle} once its concerns are accepted"),
        (None, false) => format!("not {participle}: its concerns must be accepted first"),
    };
    let mut lines = vec![format!("{}: {standing}", result.target)];
    if result.error.is_some() && !result.done && !result.changes.is_empty() && !dry_run {
        lines.push(
            "  planned; some of it may be done, and the command shows what is left when it is run again:"
                .to_owned(),
        );
    }
    lines.extend(result.changes.iter().map(|change| {
        let sign = if matches!(change.action, "remove" | "detach" | "delete") { '-' } else { '+' };
        let detail = if change.detail.is_empty() { String::new() } else { format!(": {}", change.detail) };
        format!("  {sign} {} {}{detail}", change.action, change.resource)
    }));
    lines.extend(result.concerns.iter().map(|concern| {
        let word = match (concern.holds_up, concern.accepted) {
            (true, _) => "must be accepted",
            (false, true) => "accepted",
            (false, false) => "note",
        };
        format!("  {word} ({}): {}", concern.kind, concern.what)
    }));
    if !unmet.is_empty() {
        // Also the kinds that this command accepted: the next command must accept them again.
        let asked = result.concerns.iter().filter(|concern| concern.holds_up || concern.accepted);
        let kinds: BTreeSet<_> = asked.map(|concern| concern.kind).collect();
        let flags: String = kinds.iter().map(|kind| format!(" --accept {kind}")).collect();
        lines.push(format!("  run the command again with{flags}"));
    } else if result.concerns.iter().any(|concern| concern.kind == "precedence" && !concern.accepted) {
        lines.push("  --accept precedence puts Postern's rules before these rules".to_owned());
    }
    lines.iter().map(|text| line(text)).collect::<Vec<_>>().join("\n")
}

/// Escapes foreign text so that it stays on its line.
fn line(text: &str) -> String {
    printable(text).replace('\n', "\\n")
}

#[cfg(test)]
mod tests;
