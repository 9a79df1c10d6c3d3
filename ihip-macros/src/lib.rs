//! The `pruning!` macro. All it does is in [`ihip_dsl::macro_support`], where it can be tested without a compiler.
#![forbid(unsafe_code)]

use proc_macro::TokenStream;

/// Declares pruning pipelines: checked at compile time, each a type that implements `ihip_model::Pruning` and can be
/// found by its name.
#[proc_macro]
pub fn pruning(tokens: TokenStream) -> TokenStream {
    ihip_dsl::macro_support::expand(tokens.into()).into()
}
