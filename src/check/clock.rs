//! Three clocks: this machine's, the server's, the store's.
//!
//! Recovery targets are by the server's clock, ages in `status` and `expire` by this machine's against the store's, and clouds refuse requests that are
//! signed by a clock too far off.

use jiff::{SignedDuration, Timestamp};

use super::Findings;
use super::server::Server;
use super::store::StoreSeen;
use crate::output::human_duration;

/// A difference that is worth a word.
const NOTICEABLE: SignedDuration = SignedDuration::from_secs(5);
/// `expire` refuses to work beyond this, and S3 refuses signatures beyond fifteen minutes.
const TOO_FAR: SignedDuration = SignedDuration::from_mins(10);

/// Compares them.
pub fn look(server: Option<&mut Server>, store: Option<&StoreSeen>, findings: &mut Findings) {
    if let Some(server) = server {
        let before = Timestamp::now();
        let now = server.session.now().ok().and_then(|now| now.to_jiff());
        let after = Timestamp::now();
        match now {
            Some(now) => judge(
                "server's clock",
                "the server's clock",
                now,
                before,
                after,
                SignedDuration::ZERO,
                findings,
            ),
            None => findings.warning(
                "server's clock",
                "the server's clock could not be asked",
                "check the server first",
            ),
        }
    }
    if let Some((stored, before, after)) = store.and_then(|store| store.stored_at) {
        // A listing has whole seconds.
        judge(
            "store's clock",
            "the store's clock",
            stored,
            before,
            after,
            SignedDuration::from_secs(1),
            findings,
        );
    }
}

/// `there` was read at some moment between `before` and `after`, and may be up to `grain` too early.
fn judge(
    check: &'static str,
    whose: &str,
    there: Timestamp,
    before: Timestamp,
    after: Timestamp,
    grain: SignedDuration,
    findings: &mut Findings,
) {
    let late = there.duration_since(after);
    let early = before.duration_since(there.saturating_add(grain).unwrap_or(Timestamp::MAX));
    let apart = late.max(early).max(SignedDuration::ZERO);
    let amount = human_duration(apart.unsigned_abs());
    let direction = if late > SignedDuration::ZERO { "ahead of" } else { "behind" };
    let text = format!("{whose} is {amount} {direction} this machine's");
    let hint = "set both by NTP (chronyd, systemd-timesyncd)";
    if apart > TOO_FAR {
        findings.bad(
            check,
            format!("{text}: ages and recovery targets are off by so much, and expire refuses to work"),
            hint,
        );
    } else if apart > NOTICEABLE {
        findings.warning(check, text, hint);
    } else {
        findings.ok(check, format!("{whose} and this machine's agree"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn a_difference_is_judged_by_its_size_and_told_with_its_direction() {
        let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        for (there, level, words) in [
            (0, Level::Ok, "agree"),
            (-1, Level::Ok, "agree"),
            (3, Level::Ok, "agree"),
            (-7, Level::Warning, "6.00 s behind"),
            (61, Level::Warning, "1 min 0 s ahead of"),
            (-3_601, Level::Bad, "1 h 0 min behind"),
        ] {
            let mut findings = Findings::default();
            judge("clock", "the clock", at(there), at(0), at(1), SignedDuration::from_secs(1), &mut findings);
            assert_eq!(findings.0[0].level, level, "{there}: {findings:?}");
            assert!(findings.0[0].text.contains(words), "{there}: {findings:?}");
        }
    }
}
