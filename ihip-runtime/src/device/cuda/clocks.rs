//! Which of the works that two streams were handed come after which others, by vector clocks.
//!
//! A work comes after another if the order of a stream, an event or a join says so, however long anything takes: one pass
//! over what the streams are handed stands for every order in which they may come to run it. What a graph is recorded of is
//! handed over here where it runs: its branch is a third line of work, which begins where it joins the
//! stream that is recorded, and must have come back to that when the recording ends.

use std::collections::HashMap;
use std::fmt::{self, Display};

use super::order::Event;
use super::races::Place;
use crate::kv::slot::Stream;

/// One work's access to a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) place: Place,
    pub(super) writes: bool,
}

/// What the driver is handed.
#[derive(Clone, Debug)]
pub(super) enum Deed {
    /// Work of a stream, by its name.
    Touch {
        on: Stream,
        name: String,
        accesses: Vec<Access>,
    },
    Record(Stream, Event),
    Wait(Stream, Event),
    /// The stream waits for the other one.
    Join(Stream),
    /// From here on to the end, what the stream of steps is handed is recorded, and then run as a whole.
    BeginRecording,
    EndRecording,
    /// The host waits for both streams before it goes on.
    Synchronize,
}

/// What must not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Two works touch a place, at least one of them writing, and neither comes after the other.
    Race { one: String, other: String, place: Place },
    /// A recording meets the other stream, of which it has no branch.
    NoBranch,
    /// A recording ends while a branch has not come back.
    OpenBranch,
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Race { one, other, place } => write!(f, "{other} does not come after {one}: {place}"),
            Self::NoBranch => f.write_str("a recording meets a stream that is no branch of it"),
            Self::OpenBranch => f.write_str("a recording ends before its branch has come back"),
        }
    }
}

/// Both streams, and the branch of a recording.
const LINES: usize = 3;
const COMPUTE: usize = 0;
const COPY: usize = 1;
const BRANCH: usize = 2;

/// Of each line, the works that have happened.
type Clock = [u32; LINES];

/// The branch of what is being recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Branch {
    NotBegun,
    Open,
    Joined,
}

/// Who touched a place last: the last write, and what each line has read since, as the number of the work and its name.
#[derive(Debug, Default)]
struct Touched<'n> {
    write: Option<(usize, u32, &'n str)>,
    reads: [Option<(u32, &'n str)>; LINES],
}

/// How far the streams are by what they have been handed.
#[derive(Debug, Default)]
pub(super) struct Clocks<'n> {
    lines: [Clock; LINES],
    events: HashMap<Event, Clock>,
    touched: HashMap<Place, Touched<'n>>,
    recording: Option<Branch>,
}

impl<'n> Clocks<'n> {
    /// Hands over one more.
    ///
    /// # Errors
    /// What must not happen, and does.
    pub(super) fn hand(&mut self, deed: &'n Deed) -> Result<(), Fault> {
        match deed {
            Deed::Touch { on, name, accesses } => {
                let line = self.line(*on)?;
                self.lines[line][line] += 1;
                accesses.iter().try_for_each(|access| self.touch(line, name, *access))
            }
            Deed::Record(on, event) => {
                let line = self.line(*on)?;
                self.events.insert(*event, self.lines[line]);
                Ok(())
            }
            Deed::Wait(on, event) => {
                let line = self.line(*on)?;
                // An event that was never recorded has happened.
                self.advance(line, self.events.get(event).copied().unwrap_or_default());
                Ok(())
            }
            Deed::Join(on) => self.join(*on),
            Deed::BeginRecording => {
                self.recording = Some(Branch::NotBegun);
                Ok(())
            }
            Deed::EndRecording => match self.recording.take() {
                Some(Branch::Open) => Err(Fault::OpenBranch),
                _ => Ok(()),
            },
            Deed::Synchronize => {
                for line in 0..LINES {
                    self.advance(COMPUTE, self.lines[line]);
                }
                self.lines = [self.lines[COMPUTE]; LINES];
                Ok(())
            }
        }
    }

    /// Where work of a stream runs.
    fn line(&mut self, on: Stream) -> Result<usize, Fault> {
        match (on, &mut self.recording) {
            (Stream::Compute, _) => Ok(COMPUTE),
            (Stream::Copy, None) => Ok(COPY),
            (Stream::Copy, Some(Branch::NotBegun)) => Err(Fault::NoBranch),
            (Stream::Copy, Some(branch)) => {
                *branch = Branch::Open;
                Ok(BRANCH)
            }
        }
    }

    fn join(&mut self, on: Stream) -> Result<(), Fault> {
        match (on, &mut self.recording) {
            (Stream::Compute, None) => self.advance(COMPUTE, self.lines[COPY]),
            (Stream::Copy, None) => self.advance(COPY, self.lines[COMPUTE]),
            (Stream::Compute, Some(Branch::NotBegun)) => return Err(Fault::NoBranch),
            (Stream::Compute, Some(branch)) => {
                *branch = Branch::Joined;
                self.advance(COMPUTE, self.lines[BRANCH]);
            }
            (Stream::Copy, Some(branch)) => {
                *branch = Branch::Open;
                self.advance(BRANCH, self.lines[COMPUTE]);
            }
        }
        Ok(())
    }

    fn advance(&mut self, line: usize, to: Clock) {
        for (at, to) in self.lines[line].iter_mut().zip(to) {
            *at = to.max(*at);
        }
    }

    fn touch(&mut self, line: usize, name: &'n str, Access { place, writes }: Access) -> Result<(), Fault> {
        let happened = self.lines[line];
        let touched = self.touched.entry(place).or_default();
        let race = |(of, number, one): (usize, u32, &str)| {
            (happened[of] < number).then(|| Fault::Race { one: one.to_owned(), other: name.to_owned(), place })
        };
        let read = |(of, read): (usize, &Option<(u32, &'n str)>)| read.map(|(number, name)| (of, number, name));
        let reads = touched.reads.iter().enumerate().filter(|_| writes).filter_map(read);
        if let Some(fault) = touched.write.into_iter().chain(reads).find_map(race) {
            return Err(fault);
        }
        let number = happened[line];
        if writes {
            // Whoever comes after this comes after all of them.
            *touched = Touched { write: Some((line, number, name)), ..Touched::default() };
        } else {
            touched.reads[line] = Some((number, name));
        }
        Ok(())
    }
}
