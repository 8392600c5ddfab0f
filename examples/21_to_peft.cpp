// SPDX-License-Identifier: MIT
// A trained adapter goes out, to PEFT, to other readers of PEFT's files and to llama.cpp, and comes back from each.
#include <lora/io/model_files.hpp>
#include <lora/lora.hpp>

#include <cstdio>
#include <filesystem>

using Matrix = lora::RowMatrix<float>;

int main() {
  lora::Random random{21};
  const auto normal = [&] { return static_cast<float>(random.normal()) / 4; };
  const Matrix Wq = Matrix::NullaryExpr(12, 16, normal), Wo = Matrix::NullaryExpr(16, 10, normal);
  const Matrix X = Matrix::NullaryExpr(64, 12, normal), target = X.leftCols(10);
  lora::LoraLinear q{Wq, {.rank = 2, .alpha = 4}}, o{Wo, {.rank = 3, .alpha = 4}};
  q.initialize(lora::KaimingUniform{}, random);
  o.initialize(lora::PrincipalSvd{}, random);  // PiSSA: starts at A0 B0 != 0, which the files must account for
  lora::AdapterSet<float> set{"trained"};
  set.add_layer("model.layers.0.self_attn.q_proj", q);
  set.add_layer("model.layers.0.self_attn.o_proj", o);
  lora::ModelOptimizer optimizer{lora::LoraPlus{lora::AdamW{.learning_rate = 4e-3}, 4}, set};
  lora::SavedState<float> saved_q, saved_o;
  Matrix H(64, 16), dH(64, 16), Y(64, 10), dY;
  for (int step = 0; step <= 200; ++step) {
    q.forward(X, H, saved_q);
    o.forward(H, Y, saved_o);
    dY = (Y - target) / 64;
    if (step % 100 == 0) std::printf("step %3d  loss %.3f\n", step, static_cast<double>(dY.squaredNorm() * 32));
    set.zero_gradients();
    o.backward(dY, saved_o, set.gradient("model.layers.0.self_attn.o_proj"), dH);
    q.backward(dH, saved_q, set.gradient("model.layers.0.self_attn.q_proj"));
    optimizer.step(set, 1 - step / 200.0);  // the last one is of rate 0
  }
  const auto folder = std::filesystem::temp_directory_path() / "lora_21_to_peft";
  // [save]
  const auto adapter = lora::peft::adapter_of(set.adapter("trained"), {.base_model_name_or_path = "my/base"});
  lora::peft::save(folder / "faithful", adapter);           // for PEFT, as it is
  lora::peft::save_portable(folder / "portable", adapter);  // for whatever reads PEFT's files
  const lora::gguf::BaseModel base{.head_count = 2};        // gguf::describe takes it from the model's own file
  lora::gguf::save_adapter(folder / "adapter.gguf", lora::gguf::modules_of(set.adapter("trained")), base);
  // [/save]
  // [load]
  const auto read = lora::peft::load<float>(folder / "faithful");
  std::printf("%s\n", lora::peft::require_match(read, set.layers()).describe().c_str());  // throws unless all match
  set.add("faithful", lora::peft::model_adapter(read));
  set.add("portable", lora::peft::model_adapter(lora::peft::load<float>(folder / "portable")));
  set.add("gguf", lora::gguf::model_adapter(lora::gguf::load_adapter(folder / "adapter.gguf", base)));
  // [/load]
  const Matrix trained = Y;
  for (const auto& name : set.adapter_names()) {
    set.activate(name);
    q.forward(X, H, saved_q);
    o.forward(H, Y, saved_o);
    std::printf("%-9s same output: %s\n", name.c_str(), (Y - trained).norm() < 1e-5F * trained.norm() ? "yes" : "no");
    for (const auto& [layer, state] : set.adapter(name))
      std::printf("  %s  r %d, s %.3f\n", layer.c_str(), static_cast<int>(state.config.rank), state.scale);
  }
  std::filesystem::remove_all(folder);
}
