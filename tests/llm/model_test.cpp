// SPDX-License-Identifier: MIT
// The demo's Llama against transformers and PEFT (data of make_tiny.py): logits, loss, gradients of every factor.
#include "llm/model.hpp"
#include "llm/setup.hpp"
#include "llm/tiny_files.hpp"
#include "support/catch.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/core/threads.hpp>
#include <lora/io/safetensors_matrix.hpp>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

using namespace llm;
using lora::test::llm_data;
using lora::test::message_of;

namespace {

/// What PyTorch computed.
struct Reference {
  lora::safetensors::File file = lora::safetensors::File::open(llm_data("reference.safetensors"));

  lora::RowMatrix<double> operator[](const std::string& name) const {
    return lora::safetensors::to_matrix<double>(file.at(name));
  }
  std::vector<Token> tokens(const std::string& name) const {
    std::vector<Token> result;
    const auto matrix = (*this)[name];
    for (Index i = 0; i < matrix.size(); ++i) result.push_back(static_cast<Token>(matrix.data()[i]));
    return result;
  }
  Batch batch() const { return {tokens("tokens"), tokens("targets"), (*this)["tokens"].cols()}; }
};

/// A model, with PEFT's adapter if asked for.
struct Opened {
  Weights weights;
  std::unique_ptr<Model> model;
  lora::AdapterSet<float> set;

  explicit Opened(const char* name, const char* adapter = "", Storage storage = Storage::Float, Keep keep = Keep::All)
      : weights(Weights::open(llm_data(name))), model(open_model(weights, storage, keep)), set(layers_of(*model)) {
    ModelOptions options;
    if (*adapter != '\0') options.adapter = llm_data(adapter);
    load_adapter(options, *model, set);
  }
};

double relative(const lora::RowMatrix<double>& ours, const lora::RowMatrix<double>& theirs) {
  return (ours - theirs).norm() / theirs.norm();
}

/// Logits of every token of a sequence, one token after another through the cache.
lora::RowMatrix<double> logits_of(Model& model, std::span<const Token> tokens) {
  auto cache = model.cache(std::ssize(tokens));
  lora::RowMatrix<double> logits(std::ssize(tokens), model.config().vocab_size);
  for (Index t = 0; t < logits.rows(); ++t) {
    logits.row(t) = model.next(cache, tokens.subspan(static_cast<std::size_t>(t), 1)).cast<double>();
  }
  return logits;
}

std::vector<Token> greedy(Model& model, const std::vector<Token>& prompt, Index count) {
  auto cache = model.cache(std::ssize(prompt) + count);
  auto logits = model.next(cache, prompt);
  std::vector<Token> result;
  while (true) {
    Index best = 0;
    logits.maxCoeff(&best);
    result.push_back(static_cast<Token>(best));
    if (std::ssize(result) == count) return result;
    logits = model.next(cache, std::span(result).last(1));
  }
}

}  // namespace

TEST_CASE("logits are those of transformers, token after token and all at once", "[llm][model]") {
  const Reference reference;
  Opened tiny("tiny");
  const auto batch = reference.batch();
  const auto theirs = reference["logits"];
  for (Index s = 0; s < batch.sequences(); ++s) {
    const auto sequence =
        std::span(batch.tokens)
            .subspan(static_cast<std::size_t>(s * batch.length), static_cast<std::size_t>(batch.length));
    const double apart = relative(logits_of(*tiny.model, sequence), theirs.middleRows(s * batch.length, batch.length));
    INFO("sequence " << s << ": " << apart);
    CHECK(apart <= lora::test::llama_bound);
    auto cache = tiny.model->cache(batch.length);  // the last one, with all before it in one call
    const lora::RowMatrix<double> last = tiny.model->next(cache, sequence).cast<double>();
    CHECK(relative(last, theirs.row((s + 1) * batch.length - 1)) <= lora::test::llama_bound);
  }
  CHECK(greedy(*tiny.model, reference.tokens("prompt"), 20) == reference.tokens("continuation"));

  Opened untied("untied");
  const auto first = std::span(batch.tokens).first(static_cast<std::size_t>(batch.length));
  CHECK(relative(logits_of(*untied.model, first), reference["untied.logits"]) <= lora::test::llama_bound);
}

TEST_CASE("the loss and the gradient of every factor are those of PyTorch and PEFT", "[llm][model]") {
  const Reference reference;
  const auto keep = GENERATE(Keep::All, Keep::Inputs);
  Opened tiny("tiny", "adapter", Storage::Float, keep);
  const auto batch = reference.batch();
  tiny.set.zero_gradients();
  const double loss = tiny.model->train(batch, tiny.set, 1);
  const double theirs = reference["adapter.loss"](0, 0);
  CHECK(std::abs(loss - theirs) <= lora::test::llama_bound * theirs);
  CHECK(tiny.model->loss(batch) == loss);
  double largest = 0;
  for (const auto& name : tiny.set.layer_names()) {
    const auto& gradient = tiny.set.gradient(name);
    const lora::RowMatrix<double> A = gradient.A.transpose().cast<double>(), B = gradient.B.transpose().cast<double>();
    largest = std::max({largest, relative(A, reference[name + ".lora_A"]), relative(B, reference[name + ".lora_B"])});
  }
  INFO("largest relative difference " << largest);
  CHECK(largest <= lora::test::llama_bound);
  CHECK(tiny.set.layer_names().size() == 14);

  // Gradients add up, and `weight` multiplies them.
  const auto before = tiny.set.gradient("model.layers.0.mlp.up_proj").B;
  tiny.model->train(batch, tiny.set, 2);
  const auto& after = tiny.set.gradient("model.layers.0.mlp.up_proj").B;
  CHECK((after - 3 * before).norm() <= lora::test::llama_bound * after.norm());

  CHECK(greedy(*tiny.model, reference.tokens("prompt"), 20) == reference.tokens("adapter.continuation"));
}

TEST_CASE("without an adapter the loss is the base's, from either file and on either base", "[llm][model]") {
  const Reference reference;
  const auto batch = reference.batch();
  const double theirs = reference["loss"](0, 0);
  Opened folder("tiny"), gguf("tiny.f32.gguf");
  const double loss = folder.model->loss(batch);
  CHECK(std::abs(loss - theirs) <= lora::test::llama_bound * theirs);
  CHECK(gguf.model->loss(batch) == loss);
  Opened bf16("tiny", "", Storage::Bf16);
  CHECK(std::abs(bf16.model->loss(batch) - theirs) <= lora::test::llama_bf16_bound * theirs);
  CHECK(bf16.model->loss(batch) != loss);
}

TEST_CASE("what a model cannot do is refused, and nothing has changed", "[llm][model]") {
  Opened tiny("tiny");
  CHECK(message_of<lora::ConfigError>([&] {
          tiny.model->loss({{1, 128}, {128, 1}, 2});
        }) == "Llama: tokens must lie in [0, 128), got 128");
  CHECK(message_of<lora::ConfigError>([&] {
          tiny.model->loss({std::vector<Token>(65), std::vector<Token>(65), 65});
        }) == "Llama: sequences must have 1 to 64 tokens, the model's context, got 65");
  CHECK(message_of<lora::ConfigError>([&] { tiny.model->cache(65); }) ==
        "cache: must have room for 1 to 64 tokens, the context of the model, got 65");
  auto cache = tiny.model->cache(3);
  const std::vector<Token> tokens{1, 2, 3, 4};
  CHECK(message_of<lora::ConfigError>([&] { tiny.model->next(cache, tokens); }) ==
        "next: takes 1 to 3 tokens, the room that is left, got 4");
  CHECK(cache.length == 0);
}
