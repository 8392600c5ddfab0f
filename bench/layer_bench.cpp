// SPDX-License-Identifier: MIT
// Forward, backward (with dX) and the whole training step of a LoRA layer, each beside the products of its frozen
// weight.
#include "measure.hpp"
#include "shapes.hpp"

namespace {

using bench::Heap, bench::Problem, bench::Shape;

using Member = void (Problem::*)();

void add(const std::string& name, double flops, Heap heap, const Shape& shape, Member member) {
  bench::add(name, flops, heap, [=] {
    Problem& problem = bench::problem(shape);
    problem.forward();  // a backward needs one
    return [&problem, member] { (problem.*member)(); };
  });
}

[[maybe_unused]] const bool registered = [] {
  std::string last;
  for (const Shape& shape : bench::shapes()) {
    const double product = shape.product_flops(), branch = shape.branch_flops();
    if (shape.r == bench::shapes().front().r) {  // the yardsticks do not depend on r
      add("frozen_forward" + shape.frozen_name(), product, Heap::Allowed, shape, &Problem::frozen_forward);
      add("frozen_backward" + shape.frozen_name(), product, Heap::Allowed, shape, &Problem::frozen_backward);
      add("frozen_step" + shape.frozen_name(), 2 * product, Heap::Allowed, shape, &Problem::frozen_step);
    }
    add("forward" + shape.name(), product + branch, Heap::Forbidden, shape, &Problem::forward);
    add("backward" + shape.name(), product + 2 * branch, Heap::Forbidden, shape, &Problem::backward);
    add("step" + shape.name(), shape.step_flops(), Heap::Forbidden, shape, &Problem::step);
  }
  return true;
}();

}  // namespace
