//! A store that misbehaves while walhold works: what a command may do then, and what not.
//!
//! In some worlds with a bucket there is weather between walhold and the store while a backup is taken, restored, expired or verified; the
//! server's own calls of `wal-push` meet it too. A command may then succeed, and what it did must be as right as ever; or it
//! fails with the status and the words that are documented, and is repeated under a clear sky, where it must succeed.

use std::process::{Command, Output};
use std::time::Duration;

use crate::support::fault_proxy::Fault;
use crate::support::program::describe;
use crate::support::random::Random;
use crate::world::World;

/// What passes when it is asked again.
const PASSING: &[Fault] = &[
    Fault::Status(500),
    Fault::Status(503),
    Fault::StatusRetryAfter(429, 1),
    Fault::Delay(Duration::from_millis(40)),
    Fault::Delay(Duration::from_millis(700)),
    Fault::ResetMidBody,
    Fault::TruncateBody,
    Fault::FlipBitOfRequest,
    Fault::LoseAnswer,
    Fault::Bandwidth(400_000),
    Fault::Drip(4_000, Duration::from_millis(20)),
    Fault::OkWithError,
];

/// What says that asking again is in vain, or takes long.
const LASTING: &[Fault] = &[Fault::Status(403), Fault::ClockRefused, Fault::HangMidBody];

/// What says something else than what is stored, without anything that would tell. A command may believe it, as long as it does nothing wrong.
const LIES: &[Fault] = &[Fault::ShortBody, Fault::FlipBit, Fault::StaleListing, Fault::ClockOff(-86_400)];

/// First lines of requests that a burst of faults is for.
const PATTERNS: [&str; 6] = ["", "GET ", "PUT ", "POST ", "DELETE ", "list-type="];

impl World<'_> {
    /// The same as [`World::run`] in whatever weather this world has: `None` if the weather made it fail, as it may.
    pub fn brave(&mut self, arguments: &[&str]) -> Option<Output> {
        let mut command = self.site.command(arguments);
        self.brave_with(&mut command)
    }

    pub fn brave_with(&mut self, command: &mut Command) -> Option<Output> {
        self.begin_weather();
        let output = command.output().expect("run walhold");
        self.end_weather();
        self.endured(output)
    }

    /// `None` if it failed because of the weather, as it may.
    pub fn endured(&mut self, output: Output) -> Option<Output> {
        if output.status.success() || !self.server.weather {
            return Some(output);
        }
        match output.status.code() {
            Some(1) => {}
            // Refused or unhealthy, which is the weather's fault only if it lied.
            Some(3 | 4) if self.was_lied_to => {}
            Some(3 | 4) => return Some(output),
            _ => panic!("not a status that is documented: {}", describe(&output)),
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let said = text.lines().rev().find(|line| line.contains("walhold: ERROR: "));
        let is_whole = said.is_some_and(|line| line.contains("  HINT: "));
        assert!(is_whole && !text.contains("panicked"), "{}", describe(&output));
        println!("    in bad weather: {}", said.unwrap_or_default());
        self.tally.failed_in_weather += 1;
        None
    }

    pub fn begin_weather(&mut self) {
        let Some(bucket) = self.site.bucket.as_ref().filter(|_| self.server.weather) else { return };
        let random = &mut self.random;
        let some = *random.pick(&[0, 30, 100, 100, 200, 350]);
        let (mut faults, per_mille) = match random.below(4) {
            // Ends it anywhere.
            0 => (vec![Fault::Status(403)], random.between(10, 40)),
            1 => (vec![*random.pick(PASSING), *random.pick(PASSING)], some),
            _ => (PASSING.to_vec(), some),
        };
        if random.chance(50) {
            faults.push(grave(random));
        }
        bucket.proxy.set_weather(random.next(), per_mille, &faults);
        match random.below(6) {
            0 => {
                let times = random.between(1, 6) as usize;
                let fault =
                    *random.pick(&[Fault::Status(503), Fault::StatusRetryAfter(429, 1), Fault::LoseAnswer]);
                bucket.proxy.set_matching(random.pick::<&str>(&PATTERNS), times, fault);
            }
            1 => {
                let fault = grave(random);
                bucket.proxy.set_matching(random.pick::<&str>(&PATTERNS), 1, fault);
                faults.push(fault);
            }
            _ => {}
        }
        self.was_lied_to = faults.iter().any(|fault| LIES.contains(fault));
        self.tally.commands_in_weather += 1;
    }

    pub fn end_weather(&mut self) {
        let Some(bucket) = self.site.bucket.as_ref().filter(|_| self.server.weather) else { return };
        bucket.proxy.set(Fault::None);
        bucket.proxy.set_weather(1, 0, &[]);
    }
}

fn grave(random: &mut Random) -> Fault {
    let faults = if random.chance(50) { LASTING } else { LIES };
    *random.pick(faults)
}
