//! Llama over ihip.
