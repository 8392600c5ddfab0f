// SPDX-License-Identifier: MIT
// A tool for adapter files: the command line.
#include "commands.hpp"
#include "text.hpp"

#include <CLI/CLI.hpp>

#include <exception>
#include <functional>
#include <iostream>
#include <string>

namespace {

using namespace adapter_tool;

const char* const description =
    "Looks at LoRA adapters, converts them and puts them into models. An ADAPTER is the directory of a PEFT adapter\n"
    "(adapter_config.json, adapter_model.safetensors) or an adapter GGUF of llama.cpp; which, shows itself.";
const char* const endings =
    "Ends with 0; 1 where files do not match; 2 for a wrong command line; 3 for input that cannot be read or output\n"
    "that cannot be written. Output is written as a whole or not at all.";

/// What each subcommand fills and runs.
struct Commands {
  InspectOptions inspect;
  CheckOptions check;
  ConvertOptions convert;
  MergeOptions merge;
  ExtractOptions extract;
  DiffOptions diff;
};

void add_base(CLI::App& command, BaseOptions& base) {
  auto* gguf = command.add_option("--base", base.gguf, "a GGUF of the base model, for its head counts");
  command.add_option("--config", base.config, "or the base model's config.json (Hugging Face), or its directory")
      ->excludes(gguf);
}

void add_type(CLI::App& command, std::string& type) {
  command.add_option("--type", type, "numbers of the factors in the file")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->capture_default_str();
}

/// The subcommands; `run` becomes what the command line asks for.
void define(CLI::App& app, Commands& all, std::function<Status()>& run) {
  app.footer(endings);
  app.require_subcommand(1);
  const auto add = [&](const char* name, const char* text, auto& options, auto function) {
    auto* command = app.add_subcommand(name, text);
    command->callback([&options, &run, function] { run = [&options, function] { return function(options); }; });
    return command;
  };

  auto* command = add("inspect", "layers with sizes, ranks, scales and norms of s A B", all.inspect, inspect);
  command->add_option("ADAPTER", all.inspect.adapter, "what to look at")->required();

  command = add("check", "reads strictly, and compares with a model by names and shapes", all.check, check);
  command->add_option("ADAPTER", all.check.adapter, "what to check")->required();
  command->add_option("--model", all.check.model, "the base model: a safetensors file, or a directory of them");

  command = add("convert", "from PEFT or GGUF to PEFT, portable PEFT or GGUF", all.convert, convert);
  command->add_option("FROM", all.convert.from, "an adapter")->required();
  command->add_option("TO", all.convert.to, "a directory for PEFT; a name that ends with .gguf for GGUF")->required();
  command->add_flag("--portable", all.convert.portable, "one rank, scales folded into B: the same in every reader");
  add_type(*command, all.convert.type);
  add_base(*command, all.convert.base);

  command = add("merge", "W + f s A B, in the type of each weight; all else stays byte for byte", all.merge, merge);
  command->add_option("ADAPTER", all.merge.adapter, "what to merge")->required();
  command
      ->add_option("MODEL", all.merge.model,
                   "a safetensors file with a weight for every module, or the folder of\n"
                   "several with their index")
      ->required();
  command->add_option("OUT", all.merge.out, "the new file, may be MODEL; or the new folder")->required();
  command->add_option("--scale", all.merge.scale, "f, a factor on the adapter's own scale")->capture_default_str();
  add_base(*command, all.merge.base);

  command = add("extract", "an adapter of what differs between two models", all.extract, extract);
  command->add_option("BASE", all.extract.before, "the model before, a safetensors file")->required();
  command->add_option("TUNED", all.extract.after, "the model after")->required();
  command->add_option("OUT", all.extract.out, "the directory of the adapter")->required();
  command->add_option("--rank", all.extract.rank, "the most that a layer gets; no more than its sizes allow")
      ->check(CLI::Range(1, 1 << 20));
  command->add_option("--energy", all.extract.energy, "the smallest rank that captures this share, below 1")
      ->check(CLI::Range(1e-6, 0.9999999));
  command->add_option("--target", all.extract.targets, "only these layers: names or ends of names, with commas")
      ->delimiter(',');
  command->add_option("--prefix", all.extract.prefix,
                      "before the names of layers, where the files leave it out (transformer. for GPT-2's)");
  command->add_flag("--fan-in-fan-out", all.extract.fan_in_fan_out, "the files keep [in, out] (GPT-2's Conv1D)");
  command->add_flag("--no-fan-in-fan-out", all.extract.not_fan_in_fan_out, "they do not, whatever the names say")
      ->excludes("--fan-in-fan-out");
  add_type(*command, all.extract.type);

  command = add("diff", "whether two adapters compute the same", all.diff, diff);
  command->add_option("LEFT", all.diff.left, "an adapter")->required();
  command->add_option("RIGHT", all.diff.right, "another")->required();
  command->add_option("--tolerance", all.diff.tolerance, "the largest relative difference of s A B in a layer")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  add_base(*command, all.diff.base);
}

Status fail(Status status, const std::exception& error) {
  std::cerr << "adapter_tool: " << shown(error.what()) << '\n';
  return status;
}

Status run_command_line(int argc, char** argv) {
  CLI::App app{description, "adapter_tool"};
  Commands commands;
  std::function<Status()> run;
  try {
    define(app, commands, run);
    app.parse(argc, argv);
    const Status status = run();
    std::cout.flush();
    if (!std::cout) throw std::runtime_error("standard output: must take the report, got an error");
    return status;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? Status::Fine : Status::Usage;
  } catch (const UsageError& error) {
    return fail(Status::Usage, error);
  } catch (const Mismatch& error) {
    return fail(Status::DoesNotMatch, error);
  } catch (const std::exception& error) {  // the library's errors, and the system's
    return fail(Status::BadInput, error);
  }
}

}  // namespace

int main(int argc, char** argv) { return static_cast<int>(run_command_line(argc, argv)); }
