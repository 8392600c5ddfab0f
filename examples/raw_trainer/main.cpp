// SPDX-License-Identifier: MIT
// A trainer of plain arrays: one each for all weights, activations, factors and gradients; padded rows; its own loop.
#include <lora/lora.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <vector>

// [trainer]
// The trainer's world. Row i of an activation starts 40 floats after row i - 1 and holds 24; the rest is not ours.
constexpr std::ptrdiff_t layers = 4, tokens = 16, width = 24, row_stride = 40, rank = 4, pair_size = 2 * width * rank;
constexpr float untouched = -7;

struct Arrays {
  std::vector<float> weights = std::vector<float>(layers * width * width);  // layer by layer, [out][in] as in PyTorch
  std::vector<float> activations = std::vector<float>((layers + 1) * tokens * row_stride, untouched);
  std::vector<float> d_activations = activations;
  std::vector<float> factors = std::vector<float>(layers * pair_size);  // of each layer A, then B: one array to clip,
  std::vector<float> gradients = factors;                               // to sum over machines, to save

  float* x(std::ptrdiff_t layer) { return activations.data() + layer * tokens * row_stride; }
  float* dx(std::ptrdiff_t layer) { return d_activations.data() + layer * tokens * row_stride; }
};

/// Mean of squares over the last activations, and its gradient.
double loss_and_gradient(Arrays& arrays, const std::vector<float>& target) {
  double loss = 0;
  for (std::ptrdiff_t i = 0; i < tokens * width; ++i) {
    const auto at = i / width * row_stride + i % width;
    const float error = arrays.x(layers)[at] - target[static_cast<std::size_t>(i)];
    arrays.dx(layers)[at] = error / tokens;
    loss += 0.5 * error * error / tokens;
  }
  return loss;
}

/// ReLU where the rows lie, or its gradient: 0 where the activation is 0.
void relu(float* rows, const float* active) {
  for (std::ptrdiff_t i = 0; i < tokens * width; ++i) {
    const auto at = i / width * row_stride + i % width;
    rows[at] = active[at] > 0 ? rows[at] : 0;
  }
}
// [/trainer]

// [bridge]
/// All that the trainer needs of the library: views of its arrays, a layer and the saved state for each weight.
lora::Rows<float> rows(float* first) { return {first, tokens, width, row_stride}; }
lora::FactorsView<float> pair(std::vector<float>& array, std::ptrdiff_t layer) {
  float* first = array.data() + layer * pair_size;
  return {{first, width, rank}, {first + width * rank, rank, width}};
}

struct Adapters {
  std::vector<lora::LoraLinear<lora::ViewBase<float>>> layer;
  std::array<lora::SavedState<float>, layers> saved;

  explicit Adapters(const Arrays& arrays) {
    for (std::ptrdiff_t i = 0; i < layers; ++i) {
      layer.push_back({{arrays.weights.data() + i * width * width, width, width}, {.rank = rank, .alpha = 8}});
    }
  }
  double forward(Arrays& arrays, const std::vector<float>& target) {
    for (std::size_t i = 0; i < layers; ++i) {
      const auto at = static_cast<std::ptrdiff_t>(i);
      layer[i].set_factors(pair(arrays.factors, at));  // (n + m) r numbers, no allocation
      layer[i].forward(rows(arrays.x(at)), rows(arrays.x(at + 1)), saved[i]);
      if (at + 1 < layers) relu(arrays.x(at + 1), arrays.x(at + 1));  // the next layer's X stays as it is from here on
    }
    return loss_and_gradient(arrays, target);
  }
  void backward(Arrays& arrays) {
    for (std::size_t i = layers; i-- > 0;) {
      const auto at = static_cast<std::ptrdiff_t>(i);
      const auto dY = rows(arrays.dx(at + 1)), dX = rows(arrays.dx(at));
      if (at == 0) return layer[i].backward(dY, saved[i], pair(arrays.gradients, at));  // nobody needs its dX
      layer[i].backward(dY, saved[i], pair(arrays.gradients, at), dX);
      relu(arrays.dx(at), arrays.x(at));
    }
  }
};
// [/bridge]

int main() {
  Arrays arrays;
  lora::Random random{19};
  const auto fill = [&](float& value) { value = static_cast<float>(0.3 * random.normal()); };
  std::for_each(arrays.weights.begin(), arrays.weights.end(), fill);
  Adapters adapters{arrays};
  constexpr std::size_t batches = 4;
  std::array<std::vector<float>, batches> inputs, targets;
  for (auto& batch : inputs) {
    batch.resize(tokens * width);
    for (float& value : batch) value = static_cast<float>(random.normal());
  }
  const auto load = [&](const std::vector<float>& batch) {
    for (std::ptrdiff_t i = 0; i < tokens; ++i)
      std::copy_n(&batch[std::size_t(i * width)], width, arrays.x(0) + i * row_stride);
  };
  for (float& value : arrays.factors) value = static_cast<float>(0.05 * random.normal());  // a teacher of the same rank
  for (std::size_t i = 0; i < batches; ++i) {
    load(inputs[i]);
    adapters.forward(arrays, std::vector<float>(tokens * width));
    for (std::ptrdiff_t k = 0; k < tokens * width; ++k) {
      targets[i].push_back(arrays.x(layers)[k / width * row_stride + k % width]);
    }
  }
  for (std::ptrdiff_t i = 0; i < layers; ++i) {  // and the student's start
    const auto start = lora::KaimingUniform{}(adapters.layer[std::size_t(i)].base(), rank, 2, random).factors;
    pair(arrays.factors, i).A = start.A;
    pair(arrays.factors, i).B = start.B;
  }
  const auto weights_before = arrays.weights;

  // [loop]
  const lora::LoraPlus method{lora::AdamW{.learning_rate = 2e-3}, 4};
  std::vector moments(layers, method.init<float>(width, width, rank));
  const lora::Schedule schedule{.warmup_steps = 10, .total_steps = 300, .tail = lora::Schedule::Tail::Cosine};
  for (int step = 0; step <= 300; ++step) {
    std::fill(arrays.gradients.begin(), arrays.gradients.end(), 0.0F);
    double loss = 0;
    for (std::size_t i = 0; i < batches; ++i) {  // gradients add up over micro-batches
      load(inputs[i]);
      loss += adapters.forward(arrays, targets[i]) / batches;
      adapters.backward(arrays);
    }
    if (step % 60 == 0) std::printf("step %3d  loss %.4f\n", step, loss);
    double squares = 0;  // the trainer's own clipping, over one flat array
    for (const float g : arrays.gradients) squares += double{g} * g;
    const auto factor = static_cast<float>(std::min(1.0, 1 / std::sqrt(squares / (batches * batches))) / batches);
    for (float& g : arrays.gradients) g *= factor;
    for (std::ptrdiff_t i = 0; i < layers; ++i) {  // factors move where they lie
      method.step(moments[std::size_t(i)], pair(arrays.factors, i), pair(arrays.gradients, i), 2, schedule(step));
    }
  }
  // [/loop]

  // The gradient in one direction against the loss a step there and back.
  std::fill(arrays.gradients.begin(), arrays.gradients.end(), 0.0F);
  for (float& value : arrays.factors) value += static_cast<float>(0.05 * random.normal());  // away from the minimum
  load(inputs[0]);
  adapters.forward(arrays, targets[0]);
  adapters.backward(arrays);
  const auto center = arrays.factors;
  double slope = 0, difference = 0;
  for (const float side : {1.0F, -1.0F}) {
    for (std::size_t i = 0; i < center.size(); ++i) arrays.factors[i] = center[i] + side * 1e-3F * arrays.gradients[i];
    difference += static_cast<double>(side) * adapters.forward(arrays, targets[0]) / 2e-3;
  }
  for (const float g : arrays.gradients) slope += double{g} * g;
  std::printf("slope by backward and by differences agree within 1 %%: %s\n",
              std::abs(difference / slope - 1) < 0.01 ? "yes" : "no");
  const auto gaps = [](const std::vector<float>& array) {
    std::ptrdiff_t changed = 0;
    for (std::size_t i = 0; i < array.size(); ++i) changed += i % row_stride >= width && array[i] != untouched;
    return static_cast<int>(changed);
  };
  std::printf("floats changed between the rows: %d, weights changed: %s\n",
              gaps(arrays.activations) + gaps(arrays.d_activations), arrays.weights == weights_before ? "no" : "yes");
}
