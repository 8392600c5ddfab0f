// SPDX-License-Identifier: MIT
// Takes sequences in batches: shuffled anew in every epoch to train on, in order to evaluate.
#pragma once

#include "sequences.hpp"

#include <lora/core/error.hpp>
#include <lora/core/fields.hpp>
#include <lora/core/random.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

namespace llm {

/// The order of the sequences in an epoch, a function of the seed and the epoch alone: nothing else need be saved to go
/// on in the middle. Fisher and Yates, n draws.
inline void shuffle_epoch(std::uint64_t seed, std::uint64_t epoch, std::span<Index> order) {
  const std::uint64_t mixed = lora::Random(epoch)();  // neighbouring epochs, unrelated sequences
  lora::Random random(seed ^ mixed);
  std::iota(order.begin(), order.end(), Index{0});
  for (std::size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[static_cast<std::size_t>(random.below(static_cast<Index>(i)))]);
  }
}

/// Batches of `size` sequences without an end. Every sequence comes once an epoch; a batch that begins in one epoch
/// ends in the next, so that all are of one size. For a `lora::Checkpoint`, which restores how many have been taken and
/// refuses other sequences, another size or seed.
class Batches {
 public:
  /// \pre `data` outlives this and stays as it is. \throws ConfigError  no sequence, size < 1.
  Batches(const Sequences& data, Index size, std::uint64_t seed)
      : data_(&data),
        size_(static_cast<std::uint64_t>(size)),
        seed_(seed),
        sequences_(static_cast<std::uint64_t>(data.size())),
        length_(static_cast<std::uint64_t>(data.length())),
        text_(data.checksum()),
        order_(static_cast<std::size_t>(data.size())) {
    lora::detail::require<lora::ConfigError>(data.size() >= 1, "Batches: must have a sequence, got none");
    lora::detail::require<lora::ConfigError>(size >= 1, "Batches: size must be at least 1, got ", size);
    which_.resize(static_cast<std::size_t>(size));
  }

  /// The next batch, good until the one after it. Allocates nothing after the first one.
  const Batch& next() {
    std::uint64_t place = taken_ * size_;
    for (Index& chosen : which_) {
      shuffle(place / sequences_);
      chosen = order_[static_cast<std::size_t>(place++ % sequences_)];
    }
    data_->gather(which_, batch_);
    ++taken_;
    return batch_;
  }
  /// How many have been taken.
  std::uint64_t taken() const { return taken_; }
  /// How often all sequences have been taken, 1.5 in the middle of the second time.
  double epochs() const { return static_cast<double>(taken_ * size_) / static_cast<double>(sequences_); }

 private:
  friend struct lora::Fields;
  static void fields(auto& self, const auto& visit) {
    visit("size", lora::fixed(self.size_));
    visit("seed", lora::fixed(self.seed_));
    visit("sequences", lora::fixed(self.sequences_));
    visit("length", lora::fixed(self.length_));
    visit("text", lora::fixed(self.text_));
    visit("taken", self.taken_);
  }

  void shuffle(std::uint64_t epoch) {
    if (is_shuffled_ && epoch == epoch_) return;
    shuffle_epoch(seed_, epoch, order_);
    epoch_ = epoch;
    is_shuffled_ = true;
  }

  const Sequences* data_;
  std::uint64_t size_, seed_, sequences_, length_, text_, taken_ = 0;
  std::vector<Index> order_, which_;  ///< order_ is that of the epoch `epoch_`, once it is shuffled
  std::uint64_t epoch_ = 0;
  bool is_shuffled_ = false;
  Batch batch_;
};

/// Calls `visit(batch)` with all sequences in order, `size` at once, the last ones fewer.
/// \throws ConfigError  size < 1.
template <class Visit>
void in_order(const Sequences& data, Index size, const Visit& visit) {
  lora::detail::require<lora::ConfigError>(size >= 1, "in_order: size must be at least 1, got ", size);
  Batch batch;
  std::vector<Index> which;
  for (Index at = 0; at < data.size(); at += std::ssize(which)) {
    which.resize(static_cast<std::size_t>(std::min(size, data.size() - at)));
    std::iota(which.begin(), which.end(), at);
    data.gather(which, batch);
    visit(std::as_const(batch));
  }
}

}  // namespace llm
