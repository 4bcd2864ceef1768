// Package flux holds what kstatus and Flux make of every row of the status contract against the table in the documentation.
package flux

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
	"sigs.k8s.io/yaml"
)

const (
	rows      = "../../../docs/gitops/argocd/kiln.build/ImageBuild/testdata"
	manifest  = "../../../docs/gitops/flux.yaml"
	succeeded = "succeeded"
)

// What each row is to kstatus. Flux's expressions never see an object that is being deleted: it waits for what it applied.
var expected = map[string]status.Status{
	"never-seen":         status.InProgressStatus,
	"queued":             status.InProgressStatus,
	"quota":              status.InProgressStatus,
	"running":            status.InProgressStatus,
	"retrying":           status.InProgressStatus,
	"stopping":           status.InProgressStatus,
	"edited":             status.InProgressStatus,
	succeeded:            status.CurrentStatus,
	"failed":             status.FailedStatus,
	"cancelled":          status.FailedStatus,
	"unreadable":         status.FailedStatus,
	"suspended":          status.InProgressStatus,
	"suspended-stopping": status.InProgressStatus,
	"suspended-done":     status.CurrentStatus,
	"deleted":            status.TerminatingStatus,
}

func read(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// row reads an object as a client reads it from the API server: whole numbers are int64.
func row(t *testing.T, name string) *unstructured.Unstructured {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(rows, name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	json, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	object := &unstructured.Unstructured{}
	if err := object.UnmarshalJSON(json); err != nil {
		t.Fatal(err)
	}
	return object
}

func TestEveryRowIsInTheTable(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(rows, "*.yaml"))
	if err != nil || len(files) != len(expected) {
		t.Fatalf("%d rows in %s, %d in the table (%v)", len(files), rows, len(expected), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		if _, there := expected[name]; !there {
			t.Errorf("%s has no expected health", file)
		}
	}
}

func TestKstatus(t *testing.T) {
	for name, want := range expected {
		t.Run(name, func(t *testing.T) {
			result, err := status.Compute(row(t, name))
			if err != nil {
				t.Fatal(err)
			}
			if result.Status != want {
				t.Errorf("expected %s, found %s: %s", want, result.Status, result.Message)
			}
			if want == status.FailedStatus && result.Message == "" {
				t.Error("a failure without a message")
			}
		})
	}
}

func TestFluxExpressions(t *testing.T) {
	var kustomization struct {
		Spec struct {
			HealthCheckExprs []kustomize.CustomHealthCheck `json:"healthCheckExprs"`
		} `json:"spec"`
	}
	read(t, manifest, &kustomization)
	exprs := kustomization.Spec.HealthCheckExprs
	if len(exprs) != 1 {
		t.Fatalf("%s has %d health checks, expected 1", manifest, len(exprs))
	}
	evaluator, err := cel.NewStatusEvaluator(&exprs[0].HealthCheckExpressions)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range expected {
		if want == status.TerminatingStatus {
			continue
		}
		t.Run(name, func(t *testing.T) {
			object := row(t, name)
			if gvk := exprs[0].APIVersion + " " + exprs[0].Kind; gvk != object.GetAPIVersion()+" "+object.GetKind() {
				t.Fatalf("the expressions are for %s", gvk)
			}
			result, err := evaluator.Evaluate(context.Background(), object)
			if err != nil {
				t.Fatal(err)
			}
			if string(result.Status) != string(want) {
				t.Errorf("expected %s, found %s", want, result.Status)
			}
		})
	}
}
