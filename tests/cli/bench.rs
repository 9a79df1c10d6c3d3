//! `ihip bench`: what is refused before a GPU is looked for.

use super::ihip;

#[test]
fn of_attention_of_a_model_that_is_not_known() {
    let refusal = ihip(&["bench", "attention", "--model", "gpt-2"]).refusal();
    assert!(refusal.starts_with("error: there is no geometry or file \"gpt-2\""), "{refusal}");
}

#[test]
fn of_attention_in_a_layer_that_is_not_there() {
    let refusal = ihip(&["bench", "attention", "--layer", "32"]).refusal();
    assert_eq!(refusal, "error: there is no layer 32: the model has 32, counted from 0\n");
}

#[test]
fn of_attention_beside_peers_that_are_no_rows() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = super::file_in(&folder, "peers.json", "[{}]");
    let refusal = ihip(&["bench", "attention", "--peers", &path]).refusal();
    assert!(refusal.starts_with(&format!("error: cannot read {path}: missing field")), "{refusal}");
}

#[test]
fn of_attention_with_its_help() {
    insta::assert_snapshot!(ihip(&["bench", "attention", "--help"]).text().replace("own_pipeline", "ihip"));
}
