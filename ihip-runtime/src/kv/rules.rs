//! The rules that keep every page whole.

/// What must hold whenever a page is written, moved or given back. Each rule forbids a way in which serving engines have
/// read wrong keys and values; the exploration breaks them one at a time and has to find out.
pub trait Rules {
    /// A copy comes after the event of the work that wrote the page.
    const COPIES_AFTER_WRITER: bool = true;
    /// A slot is overwritten after the events of its last readers.
    const OVERWRITES_AFTER_READERS: bool = true;
    /// A move ends, and the slot that the page leaves is given back, after the event of its copy.
    const ENDS_AFTER_COPY: bool = true;
    /// A page is given back by the last request that has it.
    const COUNTS_OWNERS: bool = true;
    /// A copy that ends is about the slots that it began with, not about what has become of them since.
    const COMPARES_GENERATIONS: bool = true;
    /// A page moves once all its tokens are written.
    const MOVES_FULL_PAGES: bool = true;
}

/// All rules hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sound {}

impl Rules for Sound {}
