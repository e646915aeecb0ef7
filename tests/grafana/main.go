// Judges a dashboard on standard input by Grafana's own model of its JSON: an unknown field, a field of another type, and
// a missing one are errors.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

func judge() error {
	cog.NewRuntime().RegisterPanelcfgVariant(timeseries.VariantConfig())
	cog.NewRuntime().RegisterDataqueryVariant(prometheus.VariantConfig())
	content, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var read dashboard.Dashboard
	if err := some(read.UnmarshalJSONStrict(content)); err != nil {
		return err
	}
	if err := strictFieldConfigs(content); err != nil {
		return err
	}
	return read.Validate()
}

// The model reads these parts of a panel leniently by itself.
func strictFieldConfigs(content []byte) error {
	var raw struct {
		Panels []struct{ FieldConfig json.RawMessage }
	}
	if err := json.Unmarshal(content, &raw); err != nil {
		return err
	}
	for number, panel := range raw.Panels {
		var config dashboard.FieldConfigSource
		if err := some(config.UnmarshalJSONStrict(panel.FieldConfig)); err != nil {
			return fmt.Errorf("panels[%d]: %w", number, err)
		}
	}
	return nil
}

// A part without errors gives an empty list of errors, which is not nil.
func some(err error) error {
	var found cog.BuildErrors
	if errors.As(err, &found) && len(found) == 0 {
		return nil
	}
	return err
}

func main() {
	if err := judge(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
