// Operations in a row, linked through Operation::next. One owner at a time.
#pragma once

#include <cstddef>

#include "fabric/transport.h"

namespace extmem::fabric {

class OperationList {
 public:
  bool empty() const { return head_ == nullptr; }
  size_t size() const { return size_; }
  void push(Operation& operation) {
    operation.next = nullptr;
    (tail_ == nullptr ? head_ : tail_->next) = &operation;
    tail_ = &operation;
    ++size_;
  }
  Operation& pop() {
    Operation& first = *head_;
    head_ = first.next;
    if (head_ == nullptr) tail_ = nullptr;
    first.next = nullptr;
    --size_;
    return first;
  }
  OperationList take() {
    OperationList all = *this;
    *this = OperationList{};
    return all;
  }
  const Operation* first() const { return head_; }
  template <typename Test>
  bool any(Test test) const {
    const Operation* at = head_;
    while (at != nullptr && !test(*at)) at = at->next;
    return at != nullptr;
  }

 private:
  Operation* head_ = nullptr;
  Operation* tail_ = nullptr;
  size_t size_ = 0;
};

}  // namespace extmem::fabric
