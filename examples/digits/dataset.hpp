// SPDX-License-Identifier: MIT
// The digits: 8 x 8 images and their classes, read from a CSV file and split into the parts that the demo needs.
#pragma once

#include <lora/lora.hpp>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace digits {

using lora::Index;
constexpr Index pixel_count = 64;
constexpr Index class_count = 10;

struct Dataset {
  lora::RowMatrix<float> pixels;  // one image a row, 0 to 1
  std::vector<Index> labels;

  Index size() const { return pixels.rows(); }
  /// The images at `indices`, in that order.
  Dataset subset(const std::vector<Index>& indices) const {
    Dataset part{pixels(indices, Eigen::indexing::all), {}};
    for (const Index i : indices) part.labels.push_back(labels[static_cast<std::size_t>(i)]);
    return part;
  }
};

/// Reads one image a line: 64 integers 0..16, then the class 0..9.
inline Dataset load(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot open the data file " + path.string() + " (see --data)");
  std::vector<float> values;
  Dataset data;
  for (std::string line; std::getline(file, line);) {
    const auto fail = [&](const std::string& what) {
      throw std::runtime_error(path.string() + ":" + std::to_string(data.labels.size() + 1) + ": " + what);
    };
    std::istringstream cells(line);
    std::vector<int> numbers;
    for (std::string cell; std::getline(cells, cell, ',');) {
      if (cell.empty() || cell.size() > 2 || cell.find_first_not_of("0123456789") != std::string::npos)
        fail("expected small integers between commas, got '" + cell + "'");
      numbers.push_back(std::stoi(cell));
    }
    if (numbers.size() != pixel_count + 1) fail("expected 65 numbers, got " + std::to_string(numbers.size()));
    if (numbers.back() >= class_count) fail("expected a class 0..9, got " + std::to_string(numbers.back()));
    data.labels.push_back(numbers.back());
    for (Index i = 0; i < pixel_count; ++i)
      values.push_back(static_cast<float>(numbers[static_cast<std::size_t>(i)]) / 16);
  }
  if (data.labels.empty()) throw std::runtime_error(path.string() + ": the file holds no image");
  data.pixels = lora::ConstRows<float>(values.data(), static_cast<Index>(data.labels.size()), pixel_count);
  return data;
}

/// 0, 1, ..., count - 1 in random order (Fisher and Yates).
inline std::vector<Index> shuffled(Index count, lora::Random& random) {
  std::vector<Index> order(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto j = static_cast<std::size_t>(random.below(static_cast<Index>(i) + 1));
    order[i] = order[j];
    order[j] = static_cast<Index>(i);
  }
  return order;
}

/// A task: some of the classes, four fifths of their images to train on, one fifth kept unseen.
struct Task {
  Dataset train, test;
};

inline Task make_task(const Dataset& all, Index first_class, Index last_class) {
  std::vector<Index> members;
  for (Index i = 0; i < all.size(); ++i) {
    const Index label = all.labels[static_cast<std::size_t>(i)];
    if (label >= first_class && label <= last_class) members.push_back(i);
  }
  lora::Random random(1998);  // one split for every method and seed
  std::vector<Index> train, test;
  for (const Index i : shuffled(static_cast<Index>(members.size()), random)) {
    (train.size() < members.size() * 4 / 5 ? train : test).push_back(members[static_cast<std::size_t>(i)]);
  }
  return {all.subset(train), all.subset(test)};
}

/// Batches for ever: epoch after epoch, each in a new order; the last images of an epoch that fill no batch are left
/// out.
class Batches {
 public:
  Batches(const Dataset& data, Index batch_size, std::uint64_t seed)
      : data_(&data), size_(std::min(batch_size, data.size())), random_(seed) {}

  Dataset next() {
    if (position_ + size_ > static_cast<Index>(order_.size())) {
      order_ = shuffled(data_->size(), random_);
      position_ = 0;
    }
    const auto first = order_.begin() + position_;
    position_ += size_;
    return data_->subset({first, first + size_});
  }

 private:
  const Dataset* data_;
  Index size_, position_ = 0;
  lora::Random random_;
  std::vector<Index> order_;
};

}  // namespace digits
