// SPDX-License-Identifier: MIT
// How a set of layers learns that a layer which somebody else owns was moved or destroyed.
#pragma once

namespace lora {

class AnchorLink;

/// A member of an object that others refer to by address. It has no value: copies and moved objects start without a
/// link, assignment leaves it alone, all anchors are equal.
class Anchor {
 public:
  Anchor() = default;
  Anchor(const Anchor& /*other*/) {}
  Anchor(Anchor&& other) noexcept { other.cut(); }
  Anchor& operator=(const Anchor& /*other*/) { return *this; }  // NOLINT(bugprone-unhandled-self-assignment)
  Anchor& operator=(Anchor&& other) noexcept {
    if (this != &other) other.cut();
    return *this;
  }
  ~Anchor() { cut(); }
  bool operator==(const Anchor& /*other*/) const { return true; }

  bool linked() const { return link_ != nullptr; }

 private:
  friend AnchorLink;
  inline void cut() noexcept;

  AnchorLink* link_ = nullptr;
};

/// The other end, one for each anchor. Not for two threads at once: neither end while the other one goes.
class AnchorLink {
 public:
  /// \pre the anchor is not linked.
  explicit AnchorLink(Anchor& anchor) : anchor_(&anchor) { anchor.link_ = this; }
  AnchorLink(const AnchorLink&) = delete;
  AnchorLink& operator=(const AnchorLink&) = delete;
  ~AnchorLink() {
    if (anchor_ != nullptr) anchor_->link_ = nullptr;
  }
  /// Is the object still where it was?
  bool holds() const { return anchor_ != nullptr; }

 private:
  friend Anchor;
  Anchor* anchor_;
};

void Anchor::cut() noexcept {
  if (link_ != nullptr) link_->anchor_ = nullptr;
  link_ = nullptr;
}

}  // namespace lora
