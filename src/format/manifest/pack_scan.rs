//! Finds out which packs a manifest points to, from its body as it streams by: what comes after the pack section, the
//! bulk of it, is not kept.

use super::bytes::Reader;
use super::decode::decode_packs;
use super::encode::{MAGIC, tag};
use super::{PackEntry, ParseManifestError};

/// Takes a manifest's body piece by piece.
#[derive(Default)]
pub struct PackScan {
    /// What is not understood yet.
    waiting: Vec<u8>,
    /// Bytes understood and dropped.
    passed: usize,
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    Magic,
    Sections,
    Found(Vec<PackEntry>),
    Failed(ParseManifestError),
}

impl PackScan {
    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        if matches!(self.state, State::Found(_) | State::Failed(_)) {
            return;
        }
        self.waiting.extend_from_slice(bytes);
        while self.step() {}
    }

    /// The packs; an error if the body ended before them or makes no sense.
    pub fn finish(self) -> Result<Vec<PackEntry>, ParseManifestError> {
        let problem = |problem: &str| ParseManifestError { offset: self.passed, problem: problem.to_owned() };
        match self.state {
            State::Found(packs) => Ok(packs),
            State::Failed(error) => Err(error),
            State::Magic | State::Sections => Err(problem("it ends before its pack section")),
        }
    }

    /// True if something was understood.
    fn step(&mut self) -> bool {
        let used = match &self.state {
            State::Magic => match self.waiting.first_chunk::<{ MAGIC.len() }>() {
                None => return false,
                Some(magic) if magic == MAGIC => {
                    self.state = State::Sections;
                    MAGIC.len()
                }
                Some(_) => return self.fail("it does not begin as a manifest does"),
            },
            State::Sections => {
                let mut reader = Reader::new(&self.waiting);
                let Ok(tag) = reader.byte("a section") else { return false };
                if tag == tag::FILES {
                    return self.fail("files come before packs");
                }
                // A section that is not here whole yet cannot be told from a damaged one; the end of the body tells.
                let Ok(mut section) = reader.section("a section") else { return false };
                if tag == tag::PACKS {
                    let decoded = decode_packs(&mut section);
                    self.state = decoded.map_or_else(State::Failed, State::Found);
                    self.waiting = Vec::new();
                    return false;
                }
                self.waiting.len() - reader.rest().len()
            }
            State::Found(_) | State::Failed(_) => return false,
        };
        self.waiting.drain(..used);
        self.passed += used;
        true
    }

    fn fail(&mut self, problem: &str) -> bool {
        self.state = State::Failed(ParseManifestError { offset: self.passed, problem: problem.to_owned() });
        false
    }
}
