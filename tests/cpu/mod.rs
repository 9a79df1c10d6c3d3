//! The CPU device against the reference and against itself, and the schedule of a request.

mod invariance;
mod limits;
mod pipelines;
mod reference;
mod schedule;
mod tiers;
