//! What must hold of the reference, whatever the description.

mod decode;
mod limits;
mod selection;
mod snapshot;
