// SPDX-License-Identifier: MIT
// Forward, backward (with dX) and the whole training step of a LoRA layer on each kind of base.
#include "measure.hpp"
#include "shapes.hpp"

#include <memory>
#include <string>

namespace {

using bench::Heap, bench::Problem, bench::Shape;

template <class Base>
void add(const std::string& name, double flops, const Shape& shape, void (Problem<Base>::*member)()) {
  bench::add(name, {flops}, Heap::Forbidden, [=] {
    auto problem = std::make_shared<Problem<Base>>(shape);
    problem->forward();  // a backward needs one
    return [=] { ((*problem).*member)(); };
  });
}

template <class Base>
void add_layer(const std::string& kind) {
  for (const Shape& shape : bench::shapes()) {
    const double product = shape.product_flops(), branch = shape.branch_flops();
    add<Base>("forward/" + kind + shape.name(), product + branch, shape, &Problem<Base>::forward);
    add<Base>("backward/" + kind + shape.name(), product + 2 * branch, shape, &Problem<Base>::backward);
    add<Base>("step/" + kind + shape.name(), shape.step_flops(), shape, &Problem<Base>::step);
    add<Base>("frozen_step/" + kind + shape.name(), 2 * product, shape, &Problem<Base>::frozen_step);
  }
}

[[maybe_unused]] const bool registered = [] {
  add_layer<lora::ViewBase<float>>("view");
  add_layer<lora::PackedBase<float>>("packed");
  add_layer<lora::PackedBf16Base>("bf16");
  return true;
}();

}  // namespace
