// How hog's CUDA kernel cuts an image into blocks, and what a block keeps in shared memory.
#pragma once

#include <algorithm>
#include <numeric>

#include "core/cuda.h"
#include "ops/hog.h"

namespace bimkern {

constexpr int kHogMaxThreads = 256;
constexpr int kHogMaxTurns = 2;                 // of the threads, to make a block's lines longer
constexpr int kHogColumns = 4;                  // pixels that a thread loads at once
constexpr int kHogMinUnit = 4;                  // pixels
constexpr int64_t kHogSharedWords = 12 * 1024;  // 48 KiB, what every launch may have
constexpr int64_t kHogLeastTile = 3 * 40;       // words of a channel: a row and those around it

// Pixels of a strip of squares that a block stages at once, with those around them.
struct HogTile {
  int32_t rows, columns;
  int32_t pitch;  // words between rows
};

// One launch: levels that are sums of its first.
struct HogLaunch {
  Hog args;
  HogBoundaries boundaries;
  float weights[kMaxHogWindow];
  int32_t source[kMaxHogLevels];
  int32_t first[kMaxHogLevels];  // cell of each level in shared memory
  int32_t side;                  // pixels of a square, the least common multiple of the cells
  int32_t unit;                  // pixels of the small square of a thread; divides the first cell
  int32_t channels;              // of a block
  int32_t squares;               // of a block
  int32_t spread;                // words of a histogram: bins, the inverse norm, and one more where that is even
  int32_t cell_spread;           // words of the histograms of a cell, and one more where that is even
  int32_t cells;                 // in shared memory
  bool packed;                   // threads load kHogColumns pixels at once; or else the block stages tiles
  HogTile tile;                  // behind the cells in shared memory

  BIMKERN_HD int32_t across(int32_t i) const { return side / static_cast<int32_t>(args.level[i].cell); }

  // A column of a strip, in words of a tile. Units are an odd number of words apart, as cells are.
  BIMKERN_HD int32_t padded(int32_t column) const { return unit % 2 == 0 ? column + column / unit : column; }

  int64_t words() const { return int64_t{cells} * cell_spread + int64_t{channels} * (tile.rows + 2) * tile.pitch; }
};

inline bool is_hog_packed(const Hog& args, int32_t unit) {
  const int64_t bytes = kHogColumns * bytes_of(args.dtype);
  return unit % kHogColumns == 0 && args.column_stride == 1 && reinterpret_cast<uintptr_t>(args.pixels) % bytes == 0 &&
         args.row_stride % kHogColumns == 0 && args.channel_stride % kHogColumns == 0 &&
         args.image_stride % kHogColumns == 0;
}

// Words of a row of a tile, with the columns beside it.
inline int64_t hog_pitch(int64_t columns, int32_t unit) {
  return (columns + 4 + (unit % 2 == 0 ? ceil_div<int64_t>(columns, unit) : 0)) | 1;
}

// The widest, then tallest tile of a strip for so many words of shared memory, at least kHogLeastTile a channel.
inline HogTile hog_tile(const HogLaunch& launch, int64_t words) {
  const int64_t row = words / launch.channels / 3;  // words, where a tile is one row
  int64_t columns = int64_t{launch.side} * launch.squares;
  if (hog_pitch(columns, launch.unit) > row) {
    columns = (row - 6) * launch.unit / (launch.unit + 1);
  }
  const int64_t pitch = hog_pitch(columns, launch.unit);
  int64_t rows = std::min<int64_t>(launch.side, words / launch.channels / pitch - 2);
  rows -= rows > launch.unit ? rows % launch.unit : 0;
  return {static_cast<int32_t>(rows), static_cast<int32_t>(columns), static_cast<int32_t>(pitch)};
}

// Cuts the work of a launch into blocks, with the smallest units and the most channels that fit; false: nothing fits.
inline bool plan_hog(HogLaunch& launch) {
  const Hog& args = launch.args;
  const auto root = static_cast<int32_t>(args.level[0].cell);
  int64_t side = 1;
  for (int32_t i = 0; i < args.num_levels; ++i) {
    side = std::lcm(side, args.level[i].cell);
    launch.source[i] = hog_source(args, i);
  }
  launch.side = static_cast<int32_t>(side);
  launch.spread = (args.bins + 1) | 1;
  for (int32_t unit = std::min(root, kHogMinUnit); unit <= root; ++unit) {
    if (root % unit != 0) {
      continue;
    }
    const int64_t across = side / unit;
    int64_t cells = unit == root ? 0 : across * across;  // of a square
    for (int32_t i = 0; i < args.num_levels; ++i) {
      cells += static_cast<int64_t>(launch.across(i)) * launch.across(i);
    }
    const bool packed = is_hog_packed(args, unit);
    const auto tile_words = [&](int64_t squares) {  // of a channel, as tall as its squares
      return packed ? 0 : (side + 2) * hog_pitch(side * squares, unit);
    };
    int64_t most_channels = kHogSharedWords / (cells * launch.spread + tile_words(1));
    if (cells * (most_channels * launch.spread | 1) + most_channels * tile_words(1) > kHogSharedWords) {
      --most_channels;
    }
    if (!packed && cells * launch.spread + kHogLeastTile <= kHogSharedWords) {
      most_channels = std::max<int64_t>(most_channels, 1);  // with a smaller tile
    }
    if (most_channels < 1) {
      continue;
    }
    const int64_t parts = ceil_div(args.channels, std::min(args.channels, most_channels));
    const int64_t channels = ceil_div(args.channels, parts);
    const int64_t cell_spread = channels * launch.spread | 1;
    const int64_t units = across * across * channels;  // of a square
    int64_t wanted = std::max<int64_t>(1, kHogMaxThreads / units);
    const int64_t line = kWarp % across == 0 ? kWarp / across : 1;  // squares side by side, as wide as a warp
    if (line * units <= kHogMaxTurns * kHogMaxThreads) {
      wanted = std::max(line, wanted - wanted % line);  // so warps take whole lines, which begin where sectors do
    }
    const auto words = [&](int64_t squares) { return squares * cells * cell_spread + channels * tile_words(squares); };
    while (wanted > 1 && words(wanted) > kHogSharedWords) {
      wanted -= !packed && wanted > line ? line : 1;
    }
    const int64_t all_squares = args.images * (args.height / side) * (args.width / side);
    const int64_t squares = std::min(wanted, all_squares);
    launch.unit = unit;
    launch.packed = packed;
    launch.channels = static_cast<int32_t>(channels);
    launch.squares = static_cast<int32_t>(squares);
    launch.cell_spread = static_cast<int32_t>(cell_spread);
    launch.cells = unit == root ? 0 : static_cast<int32_t>(across * across * squares);
    for (int32_t i = 0; i < args.num_levels; ++i) {
      launch.first[i] = launch.cells;
      launch.cells += static_cast<int32_t>(launch.across(i) * launch.across(i) * squares);
    }
    launch.tile = packed ? HogTile{} : hog_tile(launch, kHogSharedWords - launch.cells * cell_spread);
    return true;
  }
  return false;
}

}  // namespace bimkern
