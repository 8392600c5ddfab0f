// SPDX-License-Identifier: MIT
// Exact resume: a run that is stopped and goes on from a file ends with the bits of one that never stopped.
#include <lora/io/checkpoint.hpp>
#include <lora/lora.hpp>

#include <cstdio>
#include <filesystem>
#include <string>

using Matrix = lora::RowMatrix<float>;
/// All that a run consists of. The weight and the data are frozen: whoever goes on with a run has them already.
struct Run {
  const Matrix &X, &target;
  lora::LoraLinear<lora::ViewBase<float>> layer;
  lora::Optimizer<lora::LoraPro, float> optimizer;
  lora::Schedule schedule{.warmup_steps = 10, .total_steps = 200, .tail = lora::Schedule::Tail::Cosine};
  lora::Random random{3};  // draws the dropout masks
  lora::Index step = 0;
  // [parts]
  lora::Checkpoint checkpoint;

  Run(const lora::ColMatrix<float>& W0, const Matrix& in, const Matrix& out, double learning_rate = 0.02)
      : X(in), target(out), layer(W0, {.dropout = 0.1}), optimizer(lora::LoraPro{learning_rate}, layer) {
    layer.initialize(lora::KaimingUniform{}, random);
    checkpoint.add("layer", layer).add("optimizer", optimizer).add("schedule", schedule);
    checkpoint.add("random", random).add("step", step);
  }
  // [/parts]
  float train(lora::Index until) {
    lora::SavedState<float> saved;
    auto gradient = layer.zero_gradient();
    Matrix Y(X.rows(), target.cols()), dY;
    for (; step < until; ++step) {
      layer.forward(X, Y, saved, random);
      dY = (Y - target) / static_cast<float>(X.rows());
      gradient.set_zero();
      layer.backward(dY, saved, gradient);
      optimizer.step(layer, gradient, schedule(step));
    }
    layer.forward(X, Y, saved);  // without dropout
    return (Y - target).squaredNorm() / static_cast<float>(2 * X.rows());
  }
};

int main() {
  lora::Random random{5};
  const auto normal = [&] { return static_cast<float>(random.normal()); };
  const lora::ColMatrix<float> W0 = lora::ColMatrix<float>::NullaryExpr(24, 16, normal);
  const Matrix X = Matrix::NullaryExpr(64, 24, normal), target = X * W0 + X.leftCols(2) * Matrix::Ones(2, 16);
  const auto path = std::filesystem::temp_directory_path() / "lora_19_resume.checkpoint";
  // [resume]
  Run run(W0, X, target);
  std::printf("loss after 100 steps %.2f\n", run.train(100));
  run.checkpoint.write(path);  // as often as wanted: a crash leaves the old file or the new one
  std::printf("loss after 200 steps %.2f\n", run.train(200));

  Run resumed(W0, X, target);  // in another process, say
  resumed.checkpoint.restore(path);
  std::printf("resumed at step %d\n", static_cast<int>(resumed.step));
  std::printf("loss after 200 steps %.2f\n", resumed.train(200));
  const bool same = resumed.layer == run.layer && resumed.optimizer == run.optimizer;
  std::printf("the same bits as without the stop: %s\n", same ? "yes" : "no");
  // [/resume]
  try {
    Run(W0, X, target, 0.03).checkpoint.restore(path);
  } catch (const lora::ConfigError& error) {
    std::printf("%s\n", std::string(error.what()).substr(path.string().size() + 2).c_str());
  }
  std::filesystem::remove(path);
}
