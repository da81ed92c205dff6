// Tile registers (AMX): eight registers of 16 rows of 64 bytes.

#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

#include "simd.hpp"

#if !defined(__AMX_TILE__) || !defined(__AMX_BF16__) || !defined(__AMX_INT8__)
#error "this CPU has no tile registers"
#endif

namespace fastvlm::FASTVLM_LEVEL {

constexpr int kTileRows = 16;
constexpr int kTileRowBytes = 64;
constexpr int kTileBytes = kTileRows * kTileRowBytes;

// Compilers do not know that tile loads read memory and tile stores write it.
inline void settle_memory() { asm volatile("" ::: "memory"); }

// Requests permission to use tile registers, which Linux requires once per process.
inline bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Configures all eight tile registers at full size; restores the previous configuration, which oneDNN relies on.
class AmxTileConfig {
 public:
  AmxTileConfig() {
    _tile_storeconfig(&before_);
    settle_memory();
    static const Config whole(kTileRows, kTileRowBytes);
    _tile_loadconfig(&whole);
  }
  ~AmxTileConfig() {
    settle_memory();
    _tile_loadconfig(&before_);
  }
  AmxTileConfig(const AmxTileConfig&) = delete;
  AmxTileConfig& operator=(const AmxTileConfig&) = delete;

 private:
  struct alignas(64) Config {
    std::uint8_t palette = 0, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
    Config() = default;
    Config(int num_rows, int bytes) : palette(1) {
      for (int tile = 0; tile < 8; ++tile) {
        rows[tile] = static_cast<std::uint8_t>(num_rows);
        row_bytes[tile] = static_cast<std::uint16_t>(bytes);
      }
    }
  };
  Config before_;
};

// `num_rows` (at most 16) rows of `words` words of 32 bits, `stride` words apart, as the right operands of tile
// products: for each 16 words a tile, in which row i holds word i of every row. What is missing is zero.
inline void pack_columns(const std::uint32_t* rows, std::ptrdiff_t stride, int num_rows, std::ptrdiff_t words,
                         std::uint8_t* tiles) {
  for (std::ptrdiff_t word = 0; word < words; word += kLanes, tiles += kTileBytes) {
    const __mmask16 mask = static_cast<__mmask16>(first_lanes(static_cast<std::size_t>(words - word)));
    __m512i lanes[kTileRows];
    for (int i = 0; i < kTileRows; ++i)
      lanes[i] = i < num_rows ? _mm512_maskz_loadu_epi32(mask, rows + i * stride + word) : _mm512_setzero_si512();
    transpose(lanes);
    for (int i = 0; i < kTileRows; ++i) _mm512_storeu_si512(tiles + i * kTileRowBytes, lanes[i]);
  }
}

} // namespace fastvlm::FASTVLM_LEVEL
