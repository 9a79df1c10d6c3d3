//! Tiles for products of four warps, of a cache that they do not take as it lies: what [`super::attend_groups`] does
//! otherwise. Numbers come one tile earlier than factors would, and are converted while tensor cores multiply.

pub(super) const TILES: &str = r"
    constexpr int CACHED_TILE = TILE_KEYS * ROW_BYTES;
    Cached* const cached_tiles = reinterpret_cast<Cached*>(key_tiles + $KEY_TILE * TILE);  // two, keys as they were cached
    Cached* const cached_values = cached_tiles + 2 * CACHED_TILE;                          // two
";

pub(super) const COPY: &str = r"
    // A thread copies the same pieces of every tile.
    const auto copy = [&](Cached* to, const Cached* from, int tile_index) {
        if (tile_index >= tiles) return;
        for (int item = thread; item < TILE_KEYS * ROW_PIECES; item += THREADS) {
            const int slot = tile_index % 4 * TILE_KEYS + item / ROW_PIECES, byte = item % ROW_PIECES * 16;
            copy_async_16(&to[item * 16], cached_numbers(from, slot_rows[slot]) + byte, slot_tokens[slot] != NOWHERE);
        }
    };
    // It makes factors of what it copied itself.
    const auto convert = [&](Factor* to, const Cached* from) {
        for (int item = thread; item < TILE_KEYS * ROW_PIECES; item += THREADS) {
            const int key = item / ROW_PIECES, first = item % ROW_PIECES * 2;
            for (int piece = 0; piece < 2; ++piece) {
                Factor* const eight = &to[swizzled_at<TILE_KEYS>(key, first + piece)];
                *reinterpret_cast<Pairs*>(eight) = load_eight(&from[item * 16 + piece * BITS]);
            }
        }
    };
    const auto convert_values = [&](int tile_index) {
        convert(value_tiles + tile_index % 2 * TILE, cached_values + tile_index % 2 * CACHED_TILE);
    };
$CONVERT_KEYS
";

pub(super) const CONVERT_KEYS: &str = r"
    const auto convert_keys = [&](int tile_index) {
        if (tile_index < tiles) convert(key_tiles + tile_index % 2 * TILE, cached_tiles + tile_index % 2 * CACHED_TILE);
    };
";

pub(super) const LOAD_PIECES: &str = r"
            const Pairs low_pairs = load_eight(&from[key * ROW_BYTES + piece * BITS]);
            const Pairs high_pairs = load_eight(&from[key * ROW_BYTES + (piece + PIECES / 2) * BITS]);
";

pub(super) const COPY_VALUES: &str = r"
        copy(cached_values + (tile_index + 1) % 2 * CACHED_TILE, values, tile_index + 1);
";
