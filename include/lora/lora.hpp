// SPDX-License-Identifier: MIT
// All of the library. Each room may also be included on its own.
#pragma once

// core: the values
#include <lora/core/buffer.hpp>
#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/fields.hpp>
#include <lora/core/finite.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/random.hpp>
#include <lora/core/saved_state.hpp>
#include <lora/core/scaling.hpp>
#include <lora/core/threads.hpp>
#include <lora/core/views.hpp>
#include <lora/version.hpp>

// kernel: products with a matrix that is packed once
#include <lora/kernel/amx.hpp>
#include <lora/kernel/bf16.hpp>
#include <lora/kernel/panels.hpp>
#include <lora/kernel/product.hpp>
#include <lora/kernel/tile.hpp>

// linalg: matrices known by their products
#include <lora/linalg/batch_gradient.hpp>
#include <lora/linalg/dense.hpp>
#include <lora/linalg/difference_operator.hpp>
#include <lora/linalg/gram.hpp>
#include <lora/linalg/linear_operator.hpp>
#include <lora/linalg/low_rank_product.hpp>
#include <lora/linalg/product.hpp>
#include <lora/linalg/skinny_product.hpp>
#include <lora/linalg/thin_qr.hpp>
#include <lora/linalg/truncated_svd.hpp>

// base: what W0 may be
#include <lora/base/base_of.hpp>
#include <lora/base/callback_base.hpp>
#include <lora/base/frozen_base.hpp>
#include <lora/base/owned_base.hpp>
#include <lora/base/packed_base.hpp>
#include <lora/base/packed_bf16_base.hpp>
#include <lora/base/view_base.hpp>

// init: how factors start
#include <lora/init/dense_gradient.hpp>
#include <lora/init/gaussian.hpp>
#include <lora/init/gradient_sketch.hpp>
#include <lora/init/gradient_svd.hpp>
#include <lora/init/initializer.hpp>
#include <lora/init/kaiming_uniform.hpp>
#include <lora/init/orthogonal.hpp>
#include <lora/init/principal_svd.hpp>
#include <lora/init/qr_init.hpp>
#include <lora/init/streaming_svd.hpp>
#include <lora/init/zeros.hpp>

// optim: how factors move
#include <lora/optim/adamw.hpp>
#include <lora/optim/clip.hpp>
#include <lora/optim/equivalent_gradient.hpp>
#include <lora/optim/factor_optimizer.hpp>
#include <lora/optim/full_fine_tuning.hpp>
#include <lora/optim/lanes.hpp>
#include <lora/optim/lora_fa.hpp>
#include <lora/optim/lora_pro.hpp>
#include <lora/optim/lora_pro_state.hpp>
#include <lora/optim/optimizer.hpp>
#include <lora/optim/per_factor.hpp>
#include <lora/optim/riemannian.hpp>
#include <lora/optim/schedule.hpp>
#include <lora/optim/sgd.hpp>
#include <lora/optim/update_rule.hpp>
#include <lora/optim/weight_space.hpp>

// adapter: layers with factors
#include <lora/adapter/adapter.hpp>
#include <lora/adapter/adapter_state.hpp>
#include <lora/adapter/anchor.hpp>
#include <lora/adapter/lora_config.hpp>
#include <lora/adapter/lora_linear.hpp>
#include <lora/adapter/low_rank_branch.hpp>
#include <lora/adapter/mixed_batch.hpp>
#include <lora/adapter/row_groups.hpp>

// model: the adapters of many layers
#include <lora/model/adapter_set.hpp>
#include <lora/model/combine.hpp>
#include <lora/model/extract.hpp>
#include <lora/model/layer_handle.hpp>
#include <lora/model/model_adapter.hpp>
#include <lora/model/model_optimizer.hpp>
#include <lora/model/name_pattern.hpp>
#include <lora/model/table.hpp>
#include <lora/model/targets.hpp>

// analysis: looks at all, used by none
#include <lora/analysis/alignment.hpp>
#include <lora/analysis/estimate.hpp>
#include <lora/analysis/model_estimate.hpp>
#include <lora/analysis/optimizer_cost.hpp>
