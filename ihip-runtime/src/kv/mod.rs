//! The key-value cache over two tiers of memory.
//!
//! | file | what |
//! |---|---|
//! | `slot` | room for one page: its state, its generation, the events it waits for |
//! | `page` | pages by their names, and how many requests have each |
//! | `pool` | homes of one layer's keys or values, and moves between the tiers |
//! | `rules` | what keeps a page whole, rule by rule |

pub mod page;
pub mod pool;
pub mod rules;
pub mod slot;

#[cfg(test)]
mod explore;
