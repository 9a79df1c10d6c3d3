//! The key-value cache over two tiers of memory.
//!
//! | file | what |
//! |---|---|
//! | `slot` | room for one page: its state, its generation, the events it waits for |
//! | `page` | pages by their names, and how many requests have each |
//! | `pool` | homes of one layer's keys or values, and moves between the tiers |
//! | `rules` | what keeps a page whole, rule by rule |
//! | `budget` | how many slots each pool gets |
//! | `clock` | which page leaves the GPU |
//! | `memory` | what slots lie in |
//! | `region` | a pool with its memory: reads in place, misses, copies |
//! | `reader` | rows of a request, read where they are |
//! | `store` | all of it, for many requests |
//! | `trace` | which pages steps read, in a file |
//! | `listed` | block lists made of such a file |
//! | `traffic` | what a cache did, and where tokens are |

pub mod budget;
mod clock;
mod error;
mod listed;
mod memory;
pub mod page;
pub mod pool;
mod reader;
mod region;
pub mod rules;
pub mod slot;
mod store;
pub mod trace;
mod traffic;

#[cfg(test)]
mod explore;

pub use budget::{Budget, Room, Shape};
pub use error::{Kind, KvError};
pub use memory::{Allocate, Process};
pub use page::PageId;
pub use pool::Tier;
pub use reader::Reader;
pub use region::Counts;
pub use store::{Row, Sequence, Store};
pub use traffic::{Placement, PrefillMoves, Probes, Reads, Tally, Tokens, Traffic};
