//! What runs on a GPU as well: in the emulator or on the CPU device, and on a GPU where `IHIP_TEST_DEVICE=cuda` asks
//! for it. A GPU that is asked for and not there is a failure.

mod device;
mod lockstep;
mod model;
mod ties;
