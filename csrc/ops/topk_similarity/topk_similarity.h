// topk_similarity: the k best of every row, kept over tiles of similarities.
#pragma once

#include "common/dtype.h"
#include "common/launch.h"

namespace xfer {

// The order of candidates is total: NaN before all numbers (as in torch.topk), then larger values, then lower indices.
struct TopkSimilarityArgs {
  DType dtype;           // f32 or f64: the compute type C of similarities and values
  int64_t num_rows;      // queries of this block
  int64_t num_columns;   // keys of this tile
  int64_t first_column;  // of the tile among all keys
  int64_t k;
  bool first;              // the first tile of its rows: values and indices hold nothing yet
  bool last;               // the last one: leave them sorted, best first
  const void* sim;         // [num_rows, num_columns] C, contiguous
  double factor;           // a candidate's value is factor * sim - key_offset
  const void* key_offset;  // [num_columns] C, of this tile, or null: 0
  void* values;            // [num_rows, k] C
  int64_t* indices;        // [num_rows, k]
  stream_t stream;
};

void topk_similarity_tile_cpu(const TopkSimilarityArgs& args);
void topk_similarity_tile_cuda(const TopkSimilarityArgs& args);

}  // namespace xfer
