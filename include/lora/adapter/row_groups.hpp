// SPDX-License-Identifier: MIT
// The rows of a mixed batch, sorted by the adapter that each of them names.
#pragma once

#include <lora/core/buffer.hpp>
#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/views.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace lora {

/// The rows of a batch by adapter. Made once a batch, shared by all layers of a model and by threads.
///
/// A stable counting sort, O(b + adapters); `assign` allocates nothing once it has seen the largest batch.
class RowGroups {
 public:
  static constexpr Index base_only = -1;  ///< in `adapter_of_row`: a row without adapter

  /// The rows of one adapter: at least one, ascending.
  struct Group {
    Index adapter;
    std::span<const Index> rows;  ///< valid until the next `assign`
    Index step;                   ///< from each row to the next if that is the same throughout (1: adjacent), else 0
  };

  RowGroups() = default;
  /// Row i belongs to adapter `adapter_of_row[i]`, in [0, adapters), or to none (`base_only`).
  /// \throws ConfigError  an index outside of that; adapters < 0.
  RowGroups(std::span<const Index> adapter_of_row, Index adapters) { assign(adapter_of_row, adapters); }

  /// The next batch. \throws ConfigError  see the constructor; the old groups stay.
  void assign(std::span<const Index> adapter_of_row, Index adapters) {
    detail::require<ConfigError>(adapters >= 0, "RowGroups: adapters must not be negative, got ", adapters);
    const auto b = std::ssize(adapter_of_row);
    for (Index i = 0; i < b; ++i) {
      const Index adapter = adapter_of_row[at(i)];
      detail::require<ConfigError>(adapter >= base_only && adapter < adapters, "RowGroups: adapter of row ", i,
                                   " must lie in [-1, ", adapters, "), got ", adapter);
    }
    rows_.reserve(at(b));
    parts_.reserve(at(std::min(b, adapters)));
    next_.reserve(at(adapters));  // from here on nothing throws

    tokens_ = b;
    adapters_ = adapters;
    next_.assign(at(adapters), 0);
    for (const Index adapter : adapter_of_row) {
      if (adapter != base_only) ++next_[at(adapter)];
    }
    parts_.clear();
    Index first = 0;
    for (Index adapter = 0; adapter < adapters; ++adapter) {
      const Index count = std::exchange(next_[at(adapter)], first);
      if (count > 0) parts_.push_back({adapter, first, count, 0});
      first += count;
    }
    rows_.resize(at(first));
    for (Index i = 0; i < b; ++i) {
      const Index adapter = adapter_of_row[at(i)];
      if (adapter != base_only) rows_[at(next_[at(adapter)]++)] = i;
    }
    for (Part& part : parts_) part.step = common_step(rows_of(part));
  }

  Index tokens() const { return tokens_; }           ///< b, rows without adapter included
  Index adapters() const { return adapters_; }       ///< how many there are, used or not
  Index size() const { return std::ssize(parts_); }  ///< the number of groups: of adapters with rows in the batch
  Group operator[](Index i) const {                  ///< in the order of the adapters; i in [0, size())
    const Part& part = parts_[at(i)];
    return {part.adapter, rows_of(part), part.step};
  }
  bool operator==(const RowGroups&) const = default;

 private:
  struct Part {
    Index adapter, first, count, step;
    bool operator==(const Part&) const = default;
  };

  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
  std::span<const Index> rows_of(const Part& part) const {
    return std::span<const Index>(rows_).subspan(at(part.first), at(part.count));
  }
  static Index common_step(std::span<const Index> rows) {
    if (rows.size() == 1) return 1;
    const Index step = rows[1] - rows[0];
    const auto other = [step](Index row, Index next) { return next - row != step; };
    return std::adjacent_find(rows.begin(), rows.end(), other) == rows.end() ? step : 0;
  }

  Index tokens_ = 0, adapters_ = 0;
  std::vector<Index> rows_;  // group after group
  std::vector<Part> parts_;
  std::vector<Index> next_;  // of each adapter, where its next row goes: scratch
};

namespace detail {

/// The rows of a group as one matrix: where they lie if they are evenly spaced, else copied into `scratch`.
template <class Element>
View<Element, Eigen::RowMajor> gathered(View<Element, Eigen::RowMajor> all, const RowGroups::Group& group,
                                        Buffer<std::remove_const_t<Element>>& scratch) {
  const auto count = std::ssize(group.rows);
  if (group.step > 0) {
    return {all.data() + group.rows.front() * all.outerStride(), count, all.cols(), group.step * all.outerStride()};
  }
  auto copy = scratch.reshape(count, all.cols());
  for (Index i = 0; i < count; ++i) copy.row(i) = all.row(group.rows[static_cast<std::size_t>(i)]);
  return copy;
}
/// Puts back what `gathered` copied.
template <Real Scalar>
void scatter(const Rows<Scalar>& part, const RowGroups::Group& group, Rows<Scalar>& all) {
  if (group.step > 0) return;
  for (Index i = 0; i < part.rows(); ++i) all.row(group.rows[static_cast<std::size_t>(i)]) = part.row(i);
}

}  // namespace detail
}  // namespace lora
