//! What text for Hopper alone says besides the prelude: products of a group of four warps, which run while the warps do
//! something else and take their factors from shared memory. No emulator has them.

use std::fmt::Write as _;

use crate::KvType;

/// Device functions for products with 64 rows and each number of columns in `columns`.
pub(super) fn functions(kv_type: KvType, columns: &[usize]) -> String {
    let mut text = SHARED_FACTORS.trim_start_matches('\n').to_owned();
    let mut columns = columns.to_vec();
    columns.sort_unstable();
    columns.dedup();
    for columns in columns {
        text.push_str(&products(kv_type, columns));
    }
    text
}

/// The two kinds of products with `columns` columns.
fn products(kv_type: KvType, columns: usize) -> String {
    let registers = columns / 2;
    let word = kv_type.word();
    let (mut places, mut operands) = (String::new(), String::new());
    for register in 0..registers {
        let separator = match register {
            0 => "",
            _ if register % 8 == 0 => ", \"\n                 \"",
            _ => ", ",
        };
        let _ = write!(places, "{separator}%{register}");
        let separator = match register {
            0 => "",
            _ if register % 4 == 0 => ",\n                   ",
            _ => ", ",
        };
        let _ = write!(operands, "{separator}\"+f\"(d[{}][{}])", register / 4, register % 4);
    }
    let name = format!("wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{word}.{word}");
    PRODUCTS
        .replace("$COLUMNS", &columns.to_string())
        .replace("$EIGHTS", &(columns / 8).to_string())
        .replace("$NAME", &name)
        .replace("$PLACES", &places)
        .replace("$OPERANDS", &operands)
        .replace("$0", &format!("%{registers}"))
        .replace("$1", &format!("%{}", registers + 1))
        .replace("$2", &format!("%{}", registers + 2))
        .replace("$3", &format!("%{}", registers + 3))
        .replace("$4", &format!("%{}", registers + 4))
}

const SHARED_FACTORS: &str = r#"
// ---- Products of four warps together, on sm_90a alone. They run beside what the warps do next.

// Where a piece of 16 bytes of a row lies in a tile of `rows` rows: columns of 64 elements, pieces exchanged by the row,
// which is the order that tensor cores read with a swizzle of 128 bytes. Tiles begin at multiples of 1,024 bytes.
template <int rows>
inline int swizzled_at(int row, int piece) {
    return piece / 8 * rows * 64 + row * 64 + (piece % 8 ^ row % 8) * 8;
}

// A tile in shared memory as a factor: `columns_apart` bytes between columns, 1,024 bytes from 8 rows to the next 8.
inline unsigned long long shared_factor(const void* tile, unsigned columns_apart) {
    const unsigned long long place = (shared_address(tile) & 0x3ffff) >> 4;
    return place | static_cast<unsigned long long>(columns_apart >> 4) << 16 | 1024ull >> 4 << 32 | 1ull << 62;
}

// The first `bytes` further on of a factor.
inline unsigned long long behind(unsigned long long factor, int bytes) { return factor + (bytes >> 4); }

// The end of what is not aligned to 1,024 bytes.
template <typename T>
inline T* aligned_1024(T* shared) {
    return shared + (1024 - shared_address(shared) % 1024) % 1024 / sizeof(T);
}

// Before products: registers that they read and add to have been written.
inline void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes a group of products.
inline void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `pending` of the newest groups are still under way.
template <int pending>
inline void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(pending) : "memory");
}

// What this thread wrote to shared memory is there for products after a sync.
inline void fence_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
"#;

const PRODUCTS: &str = r#"
// d = a · b, or added to it, for 64 rows and $COLUMNS columns: a [row][k], b [column][k], both in shared memory. Warp w has
// rows 16 * w on, held like those of mma_16x8x16.
inline void multiply_shared(float (&d)[$EIGHTS][4], unsigned long long a, unsigned long long b, bool adds) {
    asm volatile("{ .reg .pred adds; setp.ne.b32 adds, $2, 0; "
                 "$NAME "
                 "{$PLACES}, "
                 "$0, $1, adds, 1, 1, 0, 0; }"
                 : $OPERANDS
                 : "l"(a), "l"(b), "r"(static_cast<int>(adds)));
}

// d += a · b with a in registers, held like that of mma_16x8x16, and b [k][column] in shared memory.
inline void multiply_held(float (&d)[$EIGHTS][4], const unsigned (&a)[4], unsigned long long b) {
    asm volatile("$NAME "
                 "{$PLACES}, "
                 "{$0, $1, $2, $3}, $4, 1, 1, 1, 1;"
                 : $OPERANDS
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
"#;
